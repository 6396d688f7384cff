"""Counters of a session: each entry's place, the counters and instants of its role, who takes part, billing sessions.

And the values that entries report of the session itself: language, intents, tags, metadata.

The rollback rule counts messages that a session collected after it was archived as a session of their own. If Redis comes back
without its last moments, a session that the archive holds can look open again and go on. The entries that it collects then make
up the continuation: nothing is dropped, and the archived session and its events stay as they are.
"""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from msgspec import convert, structs

from app.domain.entry import Entry, EntryType
from app.domain.errors import InvalidEntry
from app.domain.json_value import JsonCheck
from app.domain.policy.model import PolicyVersion
from app.domain.records import Event, Message, Session, SessionQuota, State, last_reported
from app.domain.rules.signals import CONTROL_TAGS
from app.domain.rules.transition import Changes, Transition
from app.domain.strand import Strand, session_id

MOST_INTENTS = 32
_LAST_REPORTED = tuple(last_reported())
_reported = attrgetter(*_LAST_REPORTED)

# By the user, but no interaction: typing, arriving and leaving (K13, and the table of entry types).
_NOT_INTERACTING: frozenset[EntryType] = frozenset({"activity", "connect", "session.end", "conversation.ended", "chat.closed"})
_FIELDS = {role: (f"{role}_entries", f"first_{role}_at_ms", f"last_{role}_at_ms") for role in ("user", "bot", "agent", "system")}


def count(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """The place in the session and, but for `activity`, the counters and instants of the role."""
    changes["entries"] = session.entries + 1
    changes["size_bytes"] = session.size_bytes + transition.entry_bytes
    changes["last_entry_at_ms"] = transition.now_ms
    if entry.type == "activity":
        return
    counter, first, last = _FIELDS[entry.role]
    before: int = getattr(session, counter)
    changes[counter] = before + 1
    changes[last] = transition.now_ms
    if not before:
        changes[first] = transition.now_ms
    if entry.type == "message" and entry.role != "system":
        changes["interactions"] = session.interactions + 1
        if session.unanswered != (entry.role == "user"):
            changes["unanswered"] = not session.unanswered
        _time_response(transition, session, entry, changes)


def is_full(transition: Transition, session: Session, quota: SessionQuota) -> bool:
    """Whether the session has no room for the entry. It had room for its first, however large that was."""
    if 0 < quota.max_entries <= session.entries:
        return True
    return 0 < quota.max_bytes < session.size_bytes + transition.entry_bytes


def take_part(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """K14 to K17: the user's first makes a session interactive. R03: a bot's counts. K19: a developer's is flagged."""
    if is_interaction_by_user(entry):
        if not session.interactive:
            changes["interactive"] = True
    elif entry.type == "activity":
        pass
    elif entry.role == "bot":
        if not session.counted:
            changes["counted"] = True
    elif _is_word_of_agent(transition, session, entry):
        changes["trade"] = "agent"
    if entry.developer:
        changes["developer"] = True


def see(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """The values that stay as reported last, and the last set of tags; the user's own intents; the session's metadata."""
    for name, value in zip(_LAST_REPORTED, _reported(entry), strict=True):
        if value is not None:
            changes[name] = value
    if entry.role == "user" and entry.type != "activity":
        _see_intent_of_user(session, entry, changes)
    if entry.tags and (tags := tuple(tag for tag in entry.tags if tag not in CONTROL_TAGS)):
        changes["tags"] = tags
    if entry.session_metadata is not None:
        changes["session_metadata"] = merged_metadata(session, entry)
        transition.grew = True


def merged_metadata(session: Session, entry: Entry) -> dict[str, Any] | None:
    """The session's metadata with the entry's over it, key by key. Raises `InvalidEntry` where it would be too large."""
    if entry.session_metadata is None:
        return session.session_metadata
    merged = {**(session.session_metadata or {}), **entry.session_metadata}
    fault = JsonCheck().fault_as_json(merged)
    if fault is not None:
        raise InvalidEntry("session_metadata", f"merged into the session's, {fault.what}", fault.hint)
    return merged


def bill(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """K02: each block of `billing_block_minutes`, counted from the opening, with user activity is one billing session.

    K18: a session without the user is never billed. K19: nor is one in which a developer took part.
    """
    if entry.developer or session.developer:
        changes["billing_sessions"] = 0
    elif transition.now_ms >= session.billed_until_ms and is_interaction_by_user(entry):
        block_ms = transition.terms.billing_block_ms
        blocks = (transition.now_ms - session.opened_at_ms) // block_ms
        changes["billed_until_ms"] = session.opened_at_ms + (blocks + 1) * block_ms
        changes["billing_sessions"] = session.billing_sessions + 1


def is_interaction_by_user(entry: Entry) -> bool:
    return entry.type not in _NOT_INTERACTING if entry.role == "user" else entry.type == "authorization"


def _is_word_of_agent(transition: Transition, session: Session, entry: Entry) -> bool:
    """A message by an agent that is no hand-off: one by which an agent joins is for `app.domain.rules.handoff`."""
    joined = session.agent_present or not transition.terms.policy.agent_message_joins
    return entry.role == "agent" and entry.type == "message" and joined


def _see_intent_of_user(session: Session, entry: Entry, changes: Changes) -> None:
    """Ruling 9 compares with the last; `intents` is their order, without repeats in a row."""
    if entry.intent != session.user_intent:
        changes["user_intent"] = entry.intent
    intents = session.intents
    if entry.intent is not None and len(intents) < MOST_INTENTS and intents[-1:] != (entry.intent,):
        changes["intents"] = (*intents, entry.intent)


def _time_response(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """From the user's first message to the first by a bot or an agent after it."""
    if entry.role == "user":
        if session.asked_at_ms is None:
            changes["asked_at_ms"] = transition.now_ms
    elif session.first_response_ms is None and session.asked_at_ms is not None:
        changes["first_response_ms"] = transition.now_ms - session.asked_at_ms


ROLLBACK = "rollback"
_COUNTERS = (count, take_part, see, bill)
# They read these fields of an entry: fields of its message, and those that stand in the message's `rest`.
_READ = ("user_id", "role", "type", "tags", "developer", *_LAST_REPORTED)
_READ_OF_MESSAGE = tuple(name for name in _READ if name in Message.__struct_fields__)
_READ_OF_REST = frozenset(_READ) - set(_READ_OF_MESSAGE)


def continuation(
    strand: Strand, session: Session, surplus: Sequence[Message], policy: PolicyVersion
) -> tuple[Session, tuple[Message, ...]]:
    """The session that `surplus`, the messages of closed `session` that the archive lacks, makes up, and its messages.

    Computed twice it is the same session: its id is made of the one that it continues and of its first message's instant.
    """
    first = surplus[0]
    thread = Strand(strand.bot, strand.conversation, f"{strand.thread}\x1f{session.id}")
    made = Session(
        id=session_id(thread, generation=first.sequence, opened_at_ms=first.received_at_ms),
        user_id=session.user_id,
        channel=session.channel,
        opened_at_ms=first.received_at_ms,
        opened_by=first.message_id,
        opening_rule=ROLLBACK,
        previous_session_id=session.id,
        closed_at_ms=session.closed_at_ms,
        reason=session.reason,
        closing_rule=session.closing_rule,
        closed_by=session.closed_by,
        policy_version=session.policy_version,
        trade=session.trade,
        outcome=session.outcome,
        contained=session.contained,
    )
    kept = []
    for message in surplus:
        made = _counted(strand, made, message, policy)
        kept.append(structs.replace(message, sequence=made.entries))
    return made, tuple(kept)


def continued(session: Session) -> Event:
    """The event of a continuation; the archived session's own `session.closed` was emitted long ago."""
    return Event("session.continuation", session, session.closed_at_ms or session.last_entry_at_ms, ROLLBACK)


def _counted(strand: Strand, session: Session, message: Message, policy: PolicyVersion) -> Session:
    entry, terms = _entry(message), policy.terms(session.channel)
    transition = Transition(strand, State(), policy, State(), message.received_at_ms, session, terms)
    changes: Changes = {}
    for rule in _COUNTERS:
        rule(transition, session, entry, changes)
    return structs.replace(session, **changes)


def _entry(message: Message) -> Entry:
    """The entry as the bot reported it, in the fields that counting reads."""
    fields = {name: value for name, value in (message.rest or {}).items() if name in _READ_OF_REST}
    return convert(fields | {name: getattr(message, name) for name in _READ_OF_MESSAGE}, Entry)
