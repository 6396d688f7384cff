"""Which entries start a session, and the session that they start, before it counts anything. K12 to K16, B04, A11."""

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.policy.model import Terms
from app.domain.records import Receive, Session
from app.domain.rules import ending
from app.domain.rules.signals import is_relay
from app.domain.rules.transition import Transition, Verdict, expect_no_agent, is_agent_expected
from app.domain.strand import session_id

# Other types start nothing: they report the end or a change of a session (A12: nor does a search).
_RULES: dict[EntryType, str] = {
    "message": "K12",
    "session.start": "B08",
    "conversation.started": "B09",
    "connect": "K13",
    "authorization": "K17",
    "agent.joined": "B03",
    "article.opened": "A11",
}
START_SIGNALS: frozenset[EntryType] = frozenset({"session.start", "conversation.started"})
_BOTS_OWN: frozenset[EntryType] = frozenset({"message", "connect"})
_RULES_OF_MESSAGES = {"user": "B04", "bot": "K15"}


def is_starter(kind: EntryType) -> bool:
    """Whether entries of a kind start sessions where the policy does not say otherwise."""
    return kind in _RULES


def can_start(entry: Entry, kind: EntryType, terms: Terms) -> bool:
    """Whether the policy lets an entry of this kind start a session."""
    policy = terms.policy
    if kind not in _RULES or not (kind in policy.starts_with or entry.type in policy.starts_with):
        return False
    return policy.bot_starts or entry.role != "bot" or kind not in _BOTS_OWN


def rule_of(transition: Transition, entry: Entry, kind: EntryType) -> str | None:
    """The row by which an entry starts a session where none is open; None: it starts none."""
    if is_relay(transition, entry):
        return None
    if entry.refresh:
        return "K22"
    if not can_start(entry, kind, transition.terms):
        return None
    return _RULES_OF_MESSAGES.get(entry.role, _RULES[kind]) if kind == "message" else _RULES[kind]


def refreshed(_transition: Transition, _session: Session, entry: Entry, _kind: EntryType) -> Verdict | None:
    """K22: any entry may ask for it."""
    return ("refresh", "K22") if entry.refresh else None


def superseded(transition: Transition, _session: Session, entry: Entry, kind: EntryType) -> Verdict | None:
    """B08, B09: a start signal starts a session also where one is open."""
    starts = kind in START_SIGNALS and can_start(entry, kind, transition.terms)
    return ("superseded", _RULES[kind]) if starts else None


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
