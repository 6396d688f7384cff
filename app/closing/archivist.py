"""From the event streams to Postgres: each record is archived in one transaction, then released.

    XREADGROUP / XAUTOCLAIM ──> transcripts (HGETALL) ──> one transaction: sessions, messages, deliveries ──> release

A crash between any two steps repeats a step; it cannot lose one: a record stays pending until it is acknowledged, a session's
id is the primary key, a delivery's id is made of session, endpoint and event.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

import asyncpg
import structlog
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import deliveries, sessions
from app.closing.event_streams import EventStreams, Taken
from app.closing.set_aside import set_aside
from app.domain.continuation import continuation
from app.domain.continuation import told as continued
from app.domain.records import BotRules, Event
from app.failpoints import failpoint
from app.live import keys
from app.live.pipe import Pipe
from app.live.view import View, messages_of
from app.metrics import ARCHIVED, CONTINUATIONS, REJECTED

log = structlog.get_logger(__name__)

# Messages that are read and written at once; a session with more of them goes alone.
_MESSAGES_AT_ONCE = 20_000
# What is said of the data, by Postgres or by who reads it: anything else is about the server, and worth trying again.
REFUSED = (
    DataError,
    IntegrityError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)


class Archivist:
    """One consumer of all shards' streams. `batch` is about how many records one transaction holds."""

    def __init__(
        self, *, pipe: Pipe, streams: EventStreams, engine: AsyncEngine, shards: int, rules_of: Callable[[str], BotRules]
    ) -> None:
        self._pipe = pipe
        self._streams = streams
        self._engine = engine
        self._rules_of = rules_of
        self._view = View(pipe, shards=shards)

    async def run_once(self) -> int:
        """Archive everything that waits; returns how many records it was. Reading goes on while a batch is written."""
        archived = 0
        batch = await self._streams.take()
        while batch:
            reading = asyncio.create_task(self._streams.read())
            try:
                for part in _parts(batch):
                    await self._archive(part)
            finally:
                following = await reading
            archived += len(batch)
            batch = following
        return archived

    async def _archive(self, batch: Sequence[Taken]) -> None:
        """Archive and release. A record that cannot be read or written is set aside, so that its neighbours are not held up."""
        failpoint("archive.after_read")
        try:
            inserted = await self._write(batch, await self._closed_sessions(batch))
        except REFUSED as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._archive(batch[:middle])
                await self._archive(batch[middle:])
                return
            await self._set_aside(batch[0], error)
            inserted = set()
        # A crash here repeats the transaction, which then inserts nothing; it cannot lose anything.
        await self._streams.release(batch)
        failpoint("archive.after_release")
        ARCHIVED.inc(len(inserted))

    async def _write(self, batch: Sequence[Taken], closed: Sequence[sessions.ClosedSession]) -> set[str]:
        """One transaction; returns the ids of the sessions that are new to the archive."""
        async with self._engine.begin() as conn:
            inserted = await sessions.insert_closed(conn, closed)
            told = [(item.strand, event) for item in batch for event in _told(item, inserted)]
            known = [item for item in closed if item.session.id not in inserted]
            if known:
                more = await self._continuations(conn, known)
                inserted |= await sessions.insert_closed(conn, more)
                told += [(item.strand, continued(item.session)) for item in more if item.session.id in inserted]
            await deliveries.enqueue(conn, told)
            failpoint("archive.before_commit")
        failpoint("archive.after_commit")
        return inserted

    async def _continuations(
        self, conn: AsyncConnection, known: Sequence[sessions.ClosedSession]
    ) -> list[sessions.ClosedSession]:
        """What sessions that were archived before have collected since: only if Redis has lost its last moments."""
        held = await sessions.existing_message_ids(conn, [item.session for item in known])
        found = []
        for item in known:
            surplus = [message for message in item.messages if message.message_id not in held.get(item.session.id, ())]
            if surplus:
                CONTINUATIONS.inc()
                log.warning("session continued after a rollback", session=item.session.id, messages=len(surplus))
                session, messages = continuation(item.strand, item.session, surplus, self._rules_of(item.strand.bot).policy)
                found.append(sessions.ClosedSession(item.strand, session, messages, continuation_of=item.session.id))
        return found

    async def _set_aside(self, item: Taken, error: Exception) -> None:
        log.error("record set aside", bot=item.strand.bot, error=str(error))
        REJECTED.inc()
        await set_aside(self._engine, self._view, item, error)

    async def _closed_sessions(self, batch: Sequence[Taken]) -> list[sessions.ClosedSession]:
        """What ended, with its messages. Raises `ValueError` if something of the batch cannot be read."""
        for item in batch:
            if item.fault is not None:
                raise item.fault
        ends = [(item, event.session) for item in batch for event in item.events if event.type == "session.closed"]
        if len(ends) == 1:  # perhaps a very long one: the whole of it at once would hold up Redis
            item, session = ends[0]
            return [sessions.ClosedSession(item.strand, session, await self._view.messages(session.id))]
        transcripts = await self._pipe.call_all([("HGETALL", keys.messages(item.shard, session.id)) for item, session in ends])
        return [
            sessions.ClosedSession(item.strand, session, messages_of(transcript))
            for (item, session), transcript in zip(ends, transcripts, strict=True)
        ]


def _parts(batch: Sequence[Taken]) -> Iterator[list[Taken]]:
    """The batch in parts of a size that Redis and Postgres take at once; what is too long for that goes alone, and last.

    A part that fails holds up nothing but itself: those before it are archived by then.
    """
    part: list[Taken] = []
    room = _MESSAGES_AT_ONCE
    for weight, item in sorted(((_weight(item), item) for item in batch), key=itemgetter(0)):
        if part and weight > room:
            yield part
            part, room = [], _MESSAGES_AT_ONCE
        part.append(item)
        room -= weight
    if part:
        yield part


def _weight(item: Taken) -> int:
    """How many messages come with a record."""
    return sum(event.session.entries for event in item.events if event.type == "session.closed")


def _told(item: Taken, inserted: set[str]) -> list[Event]:
    """The events that are news: a session that was archived before has told of its end before."""
    ends = set(item.ended)
    return [event for event in item.events if event.session.id not in ends or event.session.id in inserted]
