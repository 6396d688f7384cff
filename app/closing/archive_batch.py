"""The work of one transaction: writes closed sessions, their messages, late entries, and the deliveries of all events.

It may run again after a crash, also with records that were archived before: it inserts only what is not there yet, and events
of a session are enqueued only by the transaction that inserts it. It reads nothing of Redis but long transcripts, and it
refuses to know how records are taken, released or rejected.

A late entry is archived with its session. Where another worker still has the record that closed the session, the record of the
late entry is deferred; where that record was rejected, it is bad data, too.

The rollback rule: if Redis comes back without its last second, a session that the archive holds can look open again, go on and
close a second time. The messages that it collected since become a session of their own, its continuation.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import structlog
from msgspec import Struct, structs
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import deliveries, erasures, late_entries, sessions
from app.archive.erasures import BotUser, Erased
from app.archive.sessions import ClosedSession
from app.domain.records import BotRules, Event, Message, Session, UnassignedEntry
from app.domain.rules.counting import continuation, continued
from app.domain.strand import Strand
from app.failures import BadData
from app.live.event_stream import StreamRecord
from app.metrics import CONTINUATIONS

log = structlog.get_logger(__name__)

RulesOf = Callable[[str], BotRules]
Portions = Callable[[str], AsyncIterator[list[Message]]]


class Batch(Struct, frozen=True):
    """The records and transcripts of one transaction.

    records   taken from the event streams
    closed    the sessions that they close, with their messages
    portions  set where a transcript is too long to be held at once: gives its messages by session id
    """

    records: Sequence[StreamRecord]
    closed: Sequence[ClosedSession]
    portions: Portions | None = None


class Archived(Struct, frozen=True):
    """The result of a batch: ids of the sessions that are new to the archive, and records to try again soon."""

    inserted: set[str]
    deferred: Sequence[StreamRecord] = ()


async def archive_batch(conn: AsyncConnection, batch: Batch, *, rules_of: RulesOf) -> Archived:
    """Write a batch; the caller commits. Raises `BadData` for a late entry of a session that was rejected."""
    taken = {(record.shard, record.id): record for record in batch.records}
    batch = await _without_erased(conn, batch)
    waiting = await _waiting(conn, batch)
    if waiting:
        batch = _without(batch, waiting)
    inserted = await sessions.insert_closed(conn, batch.closed)
    if batch.portions is not None:
        await _add_messages(conn, [closed for closed in batch.closed if closed.session.id in inserted], batch.portions)
    events = [(record.strand, event) for record in batch.records for event in _new_events(record, inserted)]
    known = [closed for closed in batch.closed if closed.session.id not in inserted]
    if known:
        continuations = await _continuations(conn, known, batch.portions, rules_of)
        inserted |= await sessions.insert_closed(conn, continuations)
        events += [(item.strand, continued(item.session)) for item in continuations if item.session.id in inserted]
    events += await late_entries.add(conn, [(record.strand, event) for record in batch.records for event in _updates(record)])
    await late_entries.add_unassigned(conn, [(record.strand, entry) for record in batch.records for entry in record.unassigned])
    await deliveries.enqueue(conn, events)
    return Archived(inserted, [taken[record.shard, record.id] for record in waiting])


async def _without_erased(conn: AsyncConnection, batch: Batch) -> Batch:
    """The batch with the sessions of erased users as the archive keeps those, and without their events and entries."""
    users = await erasures.erased_among(conn, set(_users(batch)))
    if not users:
        return batch

    def erased(strand: Strand, session: Session) -> Erased | None:
        found = users.get((strand.bot, session.user_id))
        return found if found is not None and found.holds(session) else None

    def unassigned_kept(strand: Strand, entry: UnassignedEntry) -> bool:
        found = users.get((strand.bot, entry.message.user_id))
        return found is None or entry.message.received_at_ms > found.before_ms

    records = [
        structs.replace(
            record,
            events=tuple(event for event in record.events if erased(record.strand, event.session) is None),
            unassigned=tuple(entry for entry in record.unassigned if unassigned_kept(record.strand, entry)),
        )
        for record in batch.records
    ]
    by_id = {closed.session.id: erased(closed.strand, closed.session) for closed in batch.closed}
    closed = [one if (user := by_id[one.session.id]) is None else user.without_user(one) for one in batch.closed]
    portions = None if batch.portions is None or any(by_id.values()) else batch.portions
    return Batch(records, closed, portions)


def _users(batch: Batch) -> Iterator[BotUser]:
    """The users of its sessions, events and entries."""
    for closed in batch.closed:
        yield closed.strand.bot, closed.session.user_id
    for record in batch.records:
        for event in record.events:
            yield record.strand.bot, event.session.user_id
        for entry in record.unassigned:
            yield record.strand.bot, entry.message.user_id


async def _waiting(conn: AsyncConnection, batch: Batch) -> list[StreamRecord]:
    """Records with a late entry of a session that is neither in the archive nor in this batch."""
    updated = {session for record in batch.records for session in record.updated}
    missing = await late_entries.not_archived(conn, updated - {closed.session.id for closed in batch.closed})
    if not missing:
        return []
    if await late_entries.rejected(conn, missing):
        raise BadData("its session was rejected")
    return [record for record in batch.records if not missing.isdisjoint(record.updated)]


def _without(batch: Batch, waiting: Sequence[StreamRecord]) -> Batch:
    ended = {session for record in waiting for session in record.ended}
    return structs.replace(
        batch,
        records=[record for record in batch.records if record not in waiting],
        closed=[closed for closed in batch.closed if closed.session.id not in ended],
    )


def _new_events(record: StreamRecord, inserted: set[str]) -> list[Event]:
    """A record's events but for updates, and for those of a session that it closes and that was archived before."""
    known = set(record.ended) - inserted
    return [event for event in record.events if event.type != "session.updated" and event.session.id not in known]


def _updates(record: StreamRecord) -> list[Event]:
    return [event for event in record.events if event.type == "session.updated"]


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
