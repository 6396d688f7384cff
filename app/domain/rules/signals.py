"""Signals: what an entry does, whoever sent it, the signals that end the session that they are in, and the dialog as reported.

A signal by an agent is a signal, never a hand-off (ruling 8). The dialog is context, tags and tones; the "discard" commands clear
it.
"""

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.instants import DAY_MS, MINUTE_MS
from app.domain.policy.model import Terms, folded
from app.domain.records import Dialog, Session
from app.domain.rules import ending
from app.domain.rules.transition import Transition, expect_no_survey, expect_survey, is_survey_expected

NAMED_MS = DAY_MS
REPEATED_MS = 10 * MINUTE_MS
"""How long a bot's report of a closure message or reminder is recognised: by its id, and by its text."""

_KIND_OF_TAG: tuple[tuple[str, EntryType], ...] = (
    ("new session", "conversation.started"),
    ("discard all", "discard.all"),
    ("discard", "discard"),
)
CONTROL_TAGS = frozenset(tag for tag, _ in _KIND_OF_TAG)


def kind_of(entry: Entry, session: Session | None, terms: Terms) -> EntryType:
    """The type by which an entry acts: its own or, for a message, the one that its tags, its text or its sender ask for."""
    if entry.type != "message":
        return entry.type
    for tag, kind in _KIND_OF_TAG if entry.tags else ():
        if tag in entry.tags:
            return kind
    if entry.role == "user":
        return _said(entry.text, terms) if terms.discards_by_text else "message"
    if entry.role == "agent" and terms.policy.agent_message_joins and (session is None or not session.agent_present):
        return "agent.joined"
    return "message"


def is_by_user(entry: Entry) -> bool:
    """From the user, or by the user whoever reports it: giving authorization details counts (K17)."""
    return entry.role == "user" or entry.type == "authorization"


def is_relay(transition: Transition, entry: Entry) -> bool:
    """Whether a bot reports the closure message or reminder that it relayed: that never starts a session (ruling 6).

    `in_reply_to` names the event, within 24 hours of it, or the text is the event's, within 10 minutes.
    """
    if entry.role != "bot" or entry.type == "authorization":
        return False
    said = entry.text.strip() if entry.type == "message" and entry.text is not None else None
    for announced in transition.state.announced:
        age_ms = transition.now_ms - announced.at_ms
        if entry.in_reply_to == announced.event_id and age_ms < NAMED_MS:
            return True
        if said == announced.text.strip() and age_ms <= REPEATED_MS:
            return True
    return False


def end(transition: Transition, session: Session, entry: Entry, message_id: str) -> None:
    """B08, B10: the bot reports the end."""
    rule = "B10" if entry.type == "conversation.ended" else "B08"
    ending.close(transition, session, "ended", rule=rule, by=message_id)


def close_chat(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """A04: the user closed the window."""
    ending.close(transition, session, "chat_closed", rule="A04", by=message_id)


def interrupt(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """A09: an integration failed; the next entry opens another session."""
    ending.close(transition, session, "interrupted", rule="A09", by=message_id)


def escalate(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """R06: the bot gives up; closes where the policy says so."""
    session = transition.session = escalated(session, transition.now_ms)
    if transition.terms.policy.on_escalated == "end":
        ending.close(transition, session, "escalated", rule="R06", by=message_id)


def resolve(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """R06: the question is answered; closes where the policy says so."""
    session = transition.session = resolved(session, transition.now_ms)
    if transition.terms.policy.on_resolved == "end":
        ending.close(transition, session, "resolved", rule="R06", by=message_id)


def survey_sent(transition: Transition, session: Session, _entry: Entry, _message_id: str) -> None:
    """A08: an answer counts for 24 h from here."""
    transition.session = structs.replace(session, survey_sent_at_ms=transition.now_ms)
    expect_survey(transition)


def survey_answered(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """A08: an answer in time counts and, where the policy says so, closes. A later one is an entry like any."""
    if not is_survey_expected(transition):
        return
    expect_no_survey(transition)
    session = transition.session = structs.replace(session, survey_answered_at_ms=transition.now_ms)
    if transition.terms.policy.on_survey_answered == "end":
        ending.close(transition, session, "survey_answered", rule="A08", by=message_id)


def escalated(session: Session, at_ms: int) -> Session:
    return structs.replace(session, outcome="escalated", escalated_at_ms=at_ms)


def resolved(session: Session, at_ms: int) -> Session:
    return structs.replace(session, outcome="resolved", resolved_at_ms=at_ms)


def _said(text: str | None, terms: Terms) -> EntryType:
    """The user's words for "discard", if they are all that the message says (S01)."""
    if text is not None:
        said = folded(text)
        if said in terms.discard_all_utterances:
            return "discard.all"
        if said in terms.discard_utterances:
            return "discard"
    return "message"


def learn(transition: Transition, entry: Entry) -> None:
    """The context and the set of tags as reported last, the sets before it, and the last level of each tone."""
    if not entry.tags and entry.context is None and entry.sentiment is None:
        return
    dialog = transition.state.dialog or Dialog()
    tags = tuple(tag for tag in entry.tags if tag not in CONTROL_TAGS)
    if tags:
        dialog = structs.replace(dialog, tags=tags, historic_tags=ending.with_historic(dialog.historic_tags, dialog.tags))
    if entry.context is not None:
        dialog = structs.replace(dialog, context=entry.context)
    if entry.sentiment is not None:
        dialog = structs.replace(dialog, tones={**dialog.tones, **entry.sentiment})
    transition.state = structs.replace(transition.state, dialog=dialog)
    transition.grew = True


def discard_all(transition: Transition, _session: Session, _entry: Entry, _message_id: str) -> None:
    """K23: the same session goes on."""
    transition.state = ending.after_discard_all(transition.state)


def discard_all_between(transition: Transition) -> None:
    """K23 where no session is open."""
    transition.state = ending.after_discard_all(transition.state)


def discard_between(transition: Transition) -> None:
    """K24 where no session is open."""
    transition.state = ending.after_discard(transition.state)


def discard(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """K24; and K20: it closes, unless the policy says otherwise (ruling 2)."""
    transition.state = ending.after_discard(transition.state)
    if transition.terms.policy.discard_closes:
        ending.close(transition, session, "discard", rule="K20", by=message_id)
