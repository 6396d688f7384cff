"""Closing by silence: the clock, the deadline, the reminder before it, the closure message at it, and lazy closing.

A session that is open has a deadline, always: the end of its silence or, where silence does not close, `abandon_after_hours`;
and never later than `max_duration_hours`. `now >= deadline` means over, at the deadline.
"""

from typing import Any

from msgspec import structs

from app.domain import ending
from app.domain.entry import Entry, EntryType
from app.domain.explanation import DEADLINE_RULES
from app.domain.instants import MINUTE_MS, rfc3339
from app.domain.policy_fields import Spoken, Terms
from app.domain.records import Reason, Session
from app.domain.signals import is_by_user, is_relay
from app.domain.starting import can_start
from app.domain.texts import filled, text_in
from app.domain.turn import Changes, Turn, Verdict


def pass_deadlines(turn: Turn) -> None:
    """What was due by now happened when it was due: first the reminder, then the close."""
    session = turn.session
    if session is None:
        return
    if session.policy_version != turn.terms.version and session.deadline_at_ms > turn.terms.effective_at_ms:
        session = turn.session = under_new_policy(session, turn.terms)
    if session.remind_at_ms is not None and turn.now_ms >= session.remind_at_ms:
        session = turn.session = _remind(turn, session, session.remind_at_ms)
    if turn.now_ms >= session.deadline_at_ms:
        _close_overdue(turn, session)


def under_new_policy(session: Session, terms: Terms) -> Session:
    """The session with the deadline that a changed policy gives it, though never one before the change."""
    counted = session.bot_entries > 0 or not terms.policy.requires_bot
    changes: Changes = {"policy_version": terms.version, "counted": counted, "deadline_by": None}
    set_deadline(session, changes, terms)
    return structs.replace(session, **changes)


def move_deadline(turn: Turn, session: Session, entry: Entry, changes: Changes) -> None:
    """Every entry restarts the clock, the user's also the user's own. Typing after a silence that has passed does not undo it."""
    if (entry.type != "activity" or not _is_silent(turn, session)) and not _repeats_reminder(turn, session, entry):
        changes["any_clock_at_ms"] = turn.now_ms
        if is_by_user(entry):
            changes["user_clock_at_ms"] = turn.now_ms
    set_deadline(session, changes, turn.terms)


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


def left_for_new_intent(turn: Turn, session: Session, entry: Entry, kind: EntryType) -> Verdict | None:
    """K05, K06: back after the silence with another intent, or with input that is invalid for it."""
    if turn.terms.policy.closing != "on_new_intent" or not _comes_back(turn, session, entry, kind):
        return None
    if not entry.intent_valid:
        return "new_intent", "K06"
    return ("new_intent", "K05") if entry.intent not in {None, session.intent} else None


def returned(turn: Turn, session: Session, entry: Entry, kind: EntryType) -> Verdict | None:
    """K11: back after the silence, whatever is said."""
    if turn.terms.policy.closing != "on_return" or not _comes_back(turn, session, entry, kind):
        return None
    return "returned", "K11"


def _comes_back(turn: Turn, session: Session, entry: Entry, kind: EntryType) -> bool:
    return is_by_user(entry) and can_start(kind) and _is_silent(turn, session)


def _is_silent(turn: Turn, session: Session) -> bool:
    """Lazy closing: the silence has passed, so the user's next entry may start another session."""
    return turn.terms.lazy and turn.now_ms - _silent_since(session, {}, turn.terms) >= turn.terms.silence_ms


def _silent_since(session: Session, changes: Changes, terms: Terms) -> int:
    """Where the clock of the silence was started; clock `user` counts from any entry until the user takes part (ruling 4)."""
    since_ms: int
    if terms.user_clock and session.interactive:
        since_ms = changes.get("user_clock_at_ms", session.user_clock_at_ms)
    else:
        since_ms = changes.get("any_clock_at_ms", session.any_clock_at_ms)
    return since_ms


def _repeats_reminder(turn: Turn, session: Session, entry: Entry) -> bool:
    """A bot that says our reminder to its user must not keep the session alive by it, to be reminded again, and again."""
    since_ms = session.reminded_since_ms
    return since_ms is not None and is_relay(entry) and since_ms == _silent_since(session, {}, turn.terms)


def _remind(turn: Turn, session: Session, at_ms: int) -> Session:
    """Once for each silence, where the channel can show it."""
    reminder = turn.terms.policy.reminder
    since_ms = _silent_since(session, {}, turn.terms)
    session = structs.replace(session, remind_at_ms=None, reminded_since_ms=since_ms)
    if reminder is None or not _can_show(reminder, session.channel):
        return session
    session = structs.replace(session, reminded_at_ms=at_ms)
    data = _said(turn, session, reminder) | {"closes_at": rfc3339(session.deadline_at_ms)}
    turn.tell("session.reminder", session, at_ms=at_ms, rule="reminder", data=data)
    return session


def _close_overdue(turn: Turn, session: Session) -> None:
    """K07: over at the deadline, whoever notices first. K09, K10: where the channel can show it, with words, and these first."""
    at_ms, rule = session.deadline_at_ms, DEADLINE_RULES[session.deadline_reason]
    closed = ending.closed(session, session.deadline_reason, rule=rule, at_ms=at_ms)
    message = turn.terms.policy.closure_message
    if closed.reason == "inactivity" and message is not None and _can_show(message, closed.channel):
        turn.tell("session.closure_message", closed, at_ms=at_ms, rule="K09", data=_said(turn, closed, message))
    ending.settle(turn, closed, rule=rule, at_ms=at_ms)


def _can_show(spoken: Spoken, channel: str) -> bool:
    return spoken.channels is None or channel in spoken.channels


def _said(turn: Turn, session: Session, spoken: Spoken) -> dict[str, Any]:
    language, text = text_in(spoken.texts, session.language)
    minutes = str(turn.terms.silence_ms // MINUTE_MS)
    return {"language": language, "text": filled(text, {"minutes": minutes, "user_id": session.user_id, "bot": turn.strand.bot})}
