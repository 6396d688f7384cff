"""What one transaction writes to Postgres: closed sessions, their messages, and the deliveries of their events.

It may run again after a crash, also with records that were archived before: it inserts only what is not there yet, and events
of a session are enqueued only by the transaction that inserts it. It reads nothing of Redis but long transcripts, and it
refuses to know how records are taken, released or rejected.

The rollback rule: if Redis comes back without its last second, a session that the archive holds can look open again, go on and
close a second time. The messages that it collected since become a session of their own, its continuation.
"""

from collections.abc import AsyncIterator, Callable, Sequence

import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import deliveries, sessions
from app.archive.rows import ClosedSession
from app.domain.records import BotRules, Event, Message
from app.domain.rules.continuation import continuation, continued
from app.live.event_stream import StreamRecord
from app.metrics import CONTINUATIONS

log = structlog.get_logger(__name__)

RulesOf = Callable[[str], BotRules]
Portions = Callable[[str], AsyncIterator[list[Message]]]


class Batch(Struct, frozen=True):
    """What goes into one transaction.

    records   taken from the event streams
    closed    the sessions that they close, with their messages
    portions  set where a transcript is too long to be held at once: gives its messages by session id
    """

    records: Sequence[StreamRecord]
    closed: Sequence[ClosedSession]
    portions: Portions | None = None


async def archive_batch(conn: AsyncConnection, batch: Batch, *, rules_of: RulesOf) -> set[str]:
    """Write a batch; returns the ids of the sessions that are new to the archive. The caller commits."""
    inserted = await sessions.insert_closed(conn, batch.closed)
    if batch.portions is not None:
        await _add_messages(conn, [closed for closed in batch.closed if closed.session.id in inserted], batch.portions)
    events = [(record.strand, event) for record in batch.records for event in _new_events(record, inserted)]
    known = [closed for closed in batch.closed if closed.session.id not in inserted]
    if known:
        continuations = await _continuations(conn, known, batch.portions, rules_of)
        inserted |= await sessions.insert_closed(conn, continuations)
        events += [(item.strand, continued(item.session)) for item in continuations if item.session.id in inserted]
    await deliveries.enqueue(conn, events)
    return inserted


def _new_events(record: StreamRecord, inserted: set[str]) -> list[Event]:
    """A record's events but for those of a session that it closes and that was archived before."""
    closed = set(record.ended)
    return [event for event in record.events if event.session.id not in closed or event.session.id in inserted]


async def _add_messages(conn: AsyncConnection, new: Sequence[ClosedSession], portions: Portions) -> None:
    for closed in new:
        async for portion in portions(closed.session.id):
            await sessions.add_messages(conn, closed.session, portion)


async def _continuations(
    conn: AsyncConnection, known: Sequence[ClosedSession], portions: Portions | None, rules_of: RulesOf
) -> list[ClosedSession]:
    """The continuations of sessions that were archived before and have collected messages since."""
    archived = await sessions.existing_message_ids(conn, [closed.session for closed in known])
    found = []
    for closed in known:
        surplus = await _surplus(closed, archived.get(closed.session.id, set()), portions)
        if surplus:
            CONTINUATIONS.inc()
            log.warning("session continued after a rollback", session=closed.session.id, messages=len(surplus))
            session, messages = continuation(closed.strand, closed.session, surplus, rules_of(closed.strand.bot).policy)
            found.append(ClosedSession(closed.strand, session, messages, continuation_of=closed.session.id))
    return found


async def _surplus(closed: ClosedSession, archived: set[str], portions: Portions | None) -> list[Message]:
    """Its messages that the archive does not hold, in order."""
    surplus = [message for message in closed.messages if message.message_id not in archived]
    if portions is not None:
        async for portion in portions(closed.session.id):
            surplus += [message for message in portion if message.message_id not in archived]
    return sorted(surplus, key=lambda message: message.sequence)
