"""Which entries start a session, and what the session that they start looks like. K12 to K16, B04, A11."""

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.records import Receive, Session
from app.domain.rules import ending
from app.domain.rules.pending import expect_no_agent, is_agent_expected
from app.domain.rules.signals import is_relay
from app.domain.rules.transition import Transition, Verdict
from app.domain.strand import session_id

# What is not here starts nothing: it tells of something that ends or changes (A12: nor does a search).
_RULES: dict[EntryType, str] = {
    "message": "K12",
    "session.start": "B08",
    "conversation.started": "B09",
    "connect": "K13",
    "authorization": "K17",
    "agent.joined": "B03",
    "article.opened": "A11",
}
_START_SIGNALS = frozenset({"session.start", "conversation.started"})
_RULES_OF_MESSAGES = {"user": "B04", "bot": "K15"}


def can_start(kind: EntryType) -> bool:
    return kind in _RULES


def rule_of(entry: Entry, kind: EntryType) -> str | None:
    """The row by which an entry starts a session where none is open; None: it starts none."""
    if is_relay(entry):
        return None
    if entry.refresh:
        return "K22"
    rule = _RULES.get(kind)
    return _RULES_OF_MESSAGES.get(entry.role, rule) if kind == "message" else rule


def refreshed(_transition: Transition, _session: Session, entry: Entry, _kind: EntryType) -> Verdict | None:
    """K22: any entry may ask for it."""
    return ("refresh", "K22") if entry.refresh else None


def superseded(_transition: Transition, _session: Session, _entry: Entry, kind: EntryType) -> Verdict | None:
    """B08, B09: a start signal starts a session also where one is open."""
    return ("superseded", _RULES[kind]) if kind in _START_SIGNALS else None


def open_session(transition: Transition, command: Receive, kind: EntryType, *, rule: str) -> Session:
    """The strand's next session, before the entry that opens it is counted."""
    entry = command.entry
    if entry.refresh:
        transition.state = ending.after_refresh(transition.state)
    with_agent = kind == "agent.joined" or is_agent_expected(transition)
    expect_no_agent(transition)
    generation = transition.state.generation + 1
    transition.state = structs.replace(transition.state, generation=generation)
    transition.terms = transition.policy.terms(entry.channel)
    return Session(
        id=session_id(transition.strand, generation=generation, opened_at_ms=transition.now_ms),
        user_id=entry.user_id,
        channel=entry.channel,
        opened_at_ms=transition.now_ms,
        opened_by=command.message_id,
        opening_rule=rule,
        previous_session_id=transition.state.last_session_id,
        policy_version=transition.terms.version,
        any_clock_at_ms=transition.now_ms,
        counted=not transition.terms.policy.requires_bot,
        trade="agent" if with_agent else "bot",
        handed_off_at_ms=transition.now_ms if with_agent else None,
    )
