"""Closing by signal, and the signals themselves: what an entry is, whoever sent it, and which ends the session that it is in."""

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.records import Session
from app.domain.rules import ending
from app.domain.rules.pending import expect_no_survey, expect_survey, is_survey_expected
from app.domain.rules.transition import Transition

_KIND_OF_TAG: tuple[tuple[str, EntryType], ...] = (
    ("new session", "conversation.started"),
    ("discard all", "discard.all"),
    ("discard", "discard"),
)
CONTROL_TAGS = frozenset(tag for tag, _ in _KIND_OF_TAG)


def kind_of(entry: Entry) -> EntryType:
    """What an entry does: its type or, for a message, what its tags ask for."""
    if entry.tags and entry.type == "message":
        for tag, kind in _KIND_OF_TAG:
            if tag in entry.tags:
                return kind
    return entry.type


def is_by_user(entry: Entry) -> bool:
    """From the user, or by the user whoever reports it: giving authorization details counts (K17)."""
    return entry.role == "user" or entry.type == "authorization"


def is_relay(entry: Entry) -> bool:
    """A bot's entry that answers an event of ours, a closure message for one: it never starts a session (ruling 6)."""
    return entry.in_reply_to is not None and entry.role == "bot" and entry.type != "authorization"


def end(transition: Transition, session: Session, entry: Entry, message_id: str) -> None:
    """B08, B10: the bot says that it is over."""
    rule = "B10" if entry.type == "conversation.ended" else "B08"
    ending.close(transition, session, "ended", rule=rule, by=message_id)


def close_chat(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """A04: the user closed the window."""
    ending.close(transition, session, "chat_closed", rule="A04", by=message_id)


def interrupt(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """A09: an integration failed; what follows is another session."""
    ending.close(transition, session, "interrupted", rule="A09", by=message_id)


def escalate(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """R06: the bot gives up; closes where the policy says so."""
    session = transition.session = structs.replace(session, outcome="escalated", escalated_at_ms=transition.now_ms)
    if transition.terms.policy.on_escalated == "end":
        ending.close(transition, session, "escalated", rule="R06", by=message_id)


def resolve(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """R06: the question is answered; closes where the policy says so."""
    session = transition.session = structs.replace(session, outcome="resolved", resolved_at_ms=transition.now_ms)
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
