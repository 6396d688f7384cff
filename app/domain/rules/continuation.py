"""The rollback rule: messages that a session collected after it was archived become a session of their own.

If Redis comes back without its last moments, a session that the archive holds can look open again and go on. The entries that it
collects then make up the continuation: nothing is dropped, and the archived session and its events stay as they are.
"""

from collections.abc import Sequence

from msgspec import convert, structs

from app.domain.entry import Entry
from app.domain.policy.model import PolicyVersion
from app.domain.records import Event, Message, Session, State
from app.domain.rules import counting
from app.domain.rules.transition import Changes, Transition
from app.domain.strand import Strand, session_id

RULE = "rollback"
COUNTED = (counting.count, counting.take_part, counting.see, counting.bill)


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
        opening_rule=RULE,
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
    return Event("session.continuation", session, session.closed_at_ms or session.last_entry_at_ms, RULE)


def _counted(strand: Strand, session: Session, message: Message, policy: PolicyVersion) -> Session:
    entry, terms = _entry(message), policy.terms(session.channel)
    transition = Transition(strand, State(), policy, State(), message.received_at_ms, session, terms)
    changes: Changes = {}
    for rule in COUNTED:
        rule(transition, session, entry, changes)
    return structs.replace(session, **changes)


def _entry(message: Message) -> Entry:
    """The entry as the bot reported it, in the fields that counting reads."""
    developer = bool((message.rest or {}).get("developer"))
    fields = {
        "user_id": message.user_id,
        "role": message.role,
        "type": message.type,
        "intent": message.intent,
        "language": message.language,
        "tags": message.tags,
        "developer": developer,
    }
    return convert(fields, Entry)
