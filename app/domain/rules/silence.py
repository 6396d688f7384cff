"""Closing by silence: the clock, the deadline, the reminder before it, the closure message at it, and lazy closing.

A session that is open has a deadline, always: the end of its silence or, where silence does not close, `abandon_after_hours`;
and never later than `max_duration_hours`. `now >= deadline` means over, at the deadline.
"""

from typing import Any

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.instants import MINUTE_MS, rfc3339
from app.domain.policy.model import ClosureMessage, Spoken, Terms, filled, text_in
from app.domain.records import Announcement, Event, Reason, Session
from app.domain.rules import ending
from app.domain.rules.signals import is_by_user, is_relay
from app.domain.rules.starting import can_start
from app.domain.rules.transition import Changes, Transition, Verdict
from app.domain.session_view import DEADLINE_RULES
from app.domain.strand import event_id

MOST_ANNOUNCED = 4


def pass_deadlines(transition: Transition) -> None:
    """A reminder and a close that are due by now happened when they were due, in this order."""
    session = transition.session
    if session is None:
        return
    if session.policy_version != transition.terms.version and session.deadline_at_ms > transition.terms.effective_at_ms:
        session = transition.session = under_new_policy(session, transition.terms)
    if session.remind_at_ms is not None and transition.now_ms >= session.remind_at_ms:
        session = transition.session = _remind(transition, session, session.remind_at_ms)
    if transition.now_ms >= session.deadline_at_ms:
        _close_overdue(transition, session)


def under_new_policy(session: Session, terms: Terms) -> Session:
    """The session with the deadline that a changed policy gives it, though never one before the change."""
    counted = session.bot_entries > 0 or not terms.policy.requires_bot
    changes: Changes = {"policy_version": terms.version, "counted": counted, "deadline_by": None}
    set_deadline(session, changes, terms)
    return structs.replace(session, **changes)


def move_deadline(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """Every entry restarts the clock, the user's also the user's own. Typing after a silence that has passed does not undo it."""
    if (entry.type != "activity" or not _is_silent(transition, session)) and not _repeats_reminder(transition, session, entry):
        changes["any_clock_at_ms"] = transition.now_ms
        if is_by_user(entry):
            changes["user_clock_at_ms"] = transition.now_ms
    set_deadline(session, changes, transition.terms)


def set_deadline(session: Session, changes: Changes, terms: Terms) -> None:
    """Put the deadline and the reminder's time into `changes`, as they follow from the clocks there or else in the session."""
    due_ms = session.opened_at_ms + terms.max_duration_ms
    reason: Reason = "max_duration"
    remind_at_ms = None
    if session.paused and terms.pauses:
        pass
    elif terms.proactive:
        since_ms = _silent_since(session, changes, terms)
        if since_ms + terms.silence_ms <= due_ms:
            due_ms, reason = since_ms + terms.silence_ms, "inactivity"
            if terms.remind_before_ms is not None and since_ms != session.reminded_since_ms:
                remind_at_ms = max(due_ms - terms.remind_before_ms, terms.effective_at_ms)
    else:
        abandoned_at_ms = changes.get("any_clock_at_ms", session.any_clock_at_ms) + terms.abandon_ms
        if abandoned_at_ms <= due_ms:
            due_ms, reason = abandoned_at_ms, "abandoned"
    if due_ms <= terms.effective_at_ms:
        due_ms, remind_at_ms = terms.effective_at_ms, None
    changes["deadline_at_ms"] = due_ms
    if reason != session.deadline_reason:
        changes["deadline_reason"] = reason
    if remind_at_ms != session.remind_at_ms:
        changes["remind_at_ms"] = remind_at_ms


def wake_at_ms(session: Session) -> int:
    """The next instant at which something is due."""
    return session.deadline_at_ms if session.remind_at_ms is None else session.remind_at_ms


def left_for_new_intent(transition: Transition, session: Session, entry: Entry, kind: EntryType) -> Verdict | None:
    """K05, K06: back after the silence with another intent, or with input that is invalid for it.

    The intent is compared with that of the user's last entry or, if it had none, with the last that any entry gave (ruling 9).
    """
    if transition.terms.policy.closing != "on_new_intent" or not _comes_back(transition, session, entry, kind):
        return None
    if not entry.intent_valid:
        return "new_intent", "K06"
    known = session.user_intent or session.intent
    return ("new_intent", "K05") if entry.intent not in {None, known} else None


def returned(transition: Transition, session: Session, entry: Entry, kind: EntryType) -> Verdict | None:
    """K11: back after the silence, with any intent."""
    if transition.terms.policy.closing != "on_return" or not _comes_back(transition, session, entry, kind):
        return None
    return "returned", "K11"


def _comes_back(transition: Transition, session: Session, entry: Entry, kind: EntryType) -> bool:
    return is_by_user(entry) and can_start(entry, kind, transition.terms) and _is_silent(transition, session)


def _is_silent(transition: Transition, session: Session) -> bool:
    """Lazy closing: the silence has passed, so the user's next entry may start another session."""
    return (
        transition.terms.lazy and transition.now_ms - _silent_since(session, {}, transition.terms) >= transition.terms.silence_ms
    )


def _silent_since(session: Session, changes: Changes, terms: Terms) -> int:
    """The start of the silence; clock `user` counts from any entry until the user takes part (ruling 4)."""
    since_ms: int
    if terms.user_clock and session.interactive:
        since_ms = changes.get("user_clock_at_ms", session.user_clock_at_ms)
    else:
        since_ms = changes.get("any_clock_at_ms", session.any_clock_at_ms)
    return since_ms


def _repeats_reminder(transition: Transition, session: Session, entry: Entry) -> bool:
    """A bot that relays the reminder to its user must not keep the session open by it, to be reminded again for ever."""
    since_ms = session.reminded_since_ms
    return since_ms is not None and is_relay(transition, entry) and since_ms == _silent_since(session, {}, transition.terms)


def _remind(transition: Transition, session: Session, at_ms: int) -> Session:
    """Once for each silence, where the channel can show it."""
    reminder = transition.terms.policy.reminder
    since_ms = _silent_since(session, {}, transition.terms)
    session = structs.replace(session, remind_at_ms=None, reminded_since_ms=since_ms)
    if reminder is None or not _can_show(reminder, session.channel):
        return session
    session = structs.replace(session, reminded_at_ms=at_ms)
    data = _said(transition, session, reminder) | {"closes_at": rfc3339(session.deadline_at_ms)}
    _announce(transition, transition.emit("session.reminder", session, at_ms=at_ms, rule="reminder", data=data))
    return session


def _close_overdue(transition: Transition, session: Session) -> None:
    """K07: over at the deadline, whoever notices first. K09, K10: the closure message comes before the close."""
    at_ms, rule = session.deadline_at_ms, DEADLINE_RULES[session.deadline_reason]
    closed = ending.closed(session, session.deadline_reason, rule=rule, at_ms=at_ms)
    message = transition.terms.policy.closure_message
    if closed.reason == "inactivity" and message is not None and _is_for(message, closed):
        data = _said(transition, closed, message)
        _announce(transition, transition.emit("session.closure_message", closed, at_ms=at_ms, rule="K09", data=data))
    ending.settle(transition, closed, rule=rule, at_ms=at_ms)


def _is_for(message: ClosureMessage, session: Session) -> bool:
    """Where the channel can show it; by default only to a user who took part (ruling 4)."""
    return _can_show(message, session.channel) and (session.interactive or message.to == "all")


def _announce(transition: Transition, event: Event) -> None:
    """Keep the id and the text by which the bot's own report of it is recognised (ruling 6)."""
    announcement = Announcement(event_id(event), event.at_ms, (event.data or {}).get("text", ""))
    announced = (*transition.state.announced, announcement)[-MOST_ANNOUNCED:]
    transition.state = structs.replace(transition.state, announced=announced)


def _can_show(spoken: Spoken, channel: str) -> bool:
    return spoken.channels is None or channel in spoken.channels


def _said(transition: Transition, session: Session, spoken: Spoken) -> dict[str, Any]:
    language, text = text_in(spoken.texts, session.language)
    minutes = str(transition.terms.silence_ms // MINUTE_MS)
    return {
        "language": language,
        "text": filled(text, {"minutes": minutes, "user_id": session.user_id, "bot": transition.strand.bot}),
    }
