"""From the event streams to Postgres: each record is archived in one transaction, then released.

    XREADGROUP / XAUTOCLAIM ──> transcripts (HGETALL) ──> one transaction: sessions, messages, deliveries ──> release

A crash between any two steps repeats a step; it cannot lose one: a record stays pending until it is acknowledged, a session's
id is the primary key, a delivery's id is made of session, endpoint and event.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import asyncpg
import structlog
from msgspec import Struct, msgpack
from redis.exceptions import ResponseError
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import deliveries, rejects, sessions
from app.domain.continuation import continuation
from app.domain.continuation import told as continued
from app.domain.records import BotRules, Event
from app.domain.strand import Strand
from app.errors import Unavailable
from app.failpoints import failpoint
from app.live import keys
from app.live.fold import Record
from app.live.pipe import Pipe
from app.live.view import View, messages_of
from app.metrics import ARCHIVED, CONTINUATIONS, REJECTED

log = structlog.get_logger(__name__)

GROUP = "archive"
# Messages that are read and written at once; a session with more of them goes alone.
_MESSAGES_AT_ONCE = 20_000
# What Postgres says of the data, whoever sends it: anything else is about the server, and worth trying again.
REFUSED = (
    DataError,
    IntegrityError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
    OverflowError,
)
# A repeat of an entry is known for this long after its session closed (`RULES.md`, "Entry").
REPEATS_KNOWN_MS = 15 * 60_000

# KEYS [1] the shard's event stream, [2] its counts, then message hashes of archived sessions.
# ARGV [1] consumer group, [2] how long the hashes live on, in ms, then ids of records. Done twice, it does nothing.
_RELEASE = """
for i = 3, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
for i = 3, #ARGV do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then
    redis.call('HINCRBY', KEYS[2], 'released', 1)
  end
end
return #ARGV - 2
"""

_decode_record = msgpack.Decoder(Record).decode


class Taken(Struct, frozen=True):
    """A record of a shard's stream, taken but not yet released."""

    shard: int
    id: bytes
    strand: Strand
    events: tuple[Event, ...]


class Archivist:
    """One consumer of all shards' streams. `batch` is about how many records one transaction holds."""

    def __init__(
        self,
        *,
        pipe: Pipe,
        engine: AsyncEngine,
        shards: int,
        consumer: str,
        batch: int,
        claim_idle_ms: int,
        rules_of: Callable[[str], BotRules],
    ) -> None:
        self._pipe = pipe
        self._engine = engine
        self._shards = shards
        self._consumer = consumer
        self._a_shard = max(1, batch // shards)
        self._claim_idle_ms = claim_idle_ms
        self._rules_of = rules_of
        self._view = View(pipe, shards=shards)
        self._grouped = False

    async def run_once(self) -> int:
        """Archive everything that waits; returns how many records it was. Reading goes on while a batch is written."""
        archived = 0
        batch = await self._take()
        while batch:
            reading = asyncio.create_task(self._read())
            try:
                for part in _parts(batch):
                    await self._archive(part)
            finally:
                following = await reading
            archived += len(batch)
            batch = following
        return archived

    async def _take(self) -> list[Taken]:
        """What a dead worker left comes before what is new."""
        if not self._grouped:
            await self._make_groups()
        left = await self._claim()
        return left or await self._read()

    async def _make_groups(self) -> None:
        """The consumer group of each shard; one that exists stays as it is."""
        replies = await self._pipe.call_all(
            [("XGROUP", "CREATE", keys.events(shard), GROUP, 0, "MKSTREAM") for shard in range(self._shards)]
        )
        for reply in replies:
            if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
                raise reply
        self._grouped = True

    async def _read(self) -> list[Taken]:
        return await self._ask(
            [
                ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", self._a_shard, "STREAMS", keys.events(shard), ">")
                for shard in range(self._shards)
            ]
        )

    async def _claim(self) -> list[Taken]:
        return await self._ask(
            [
                ("XAUTOCLAIM", keys.events(shard), GROUP, self._consumer, self._claim_idle_ms, "0", "COUNT", self._a_shard)
                for shard in range(self._shards)
            ]
        )

    async def _ask(self, commands: Sequence[tuple[str | int, ...]]) -> list[Taken]:
        taken = []
        for shard, reply in enumerate(await self._pipe.call_all(commands)):
            if isinstance(reply, ResponseError):
                self._grouped = False  # the group is gone, and with it the whole Redis: make it again next time
                raise Unavailable(f"Redis gives out no records: {reply}") from reply
            taken.extend(_records(shard, reply))
        return taken

    async def _archive(self, batch: Sequence[Taken]) -> None:
        """Archive and release. A record that Postgres refuses is set aside, so that its neighbours are not held up."""
        failpoint("archive.after_read")
        closed = await self._closed_sessions(batch)
        try:
            inserted = await self._write(batch, closed)
        except REFUSED as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._archive(batch[:middle])
                await self._archive(batch[middle:])
                return
            await self._set_aside(batch[0], closed, error)
            inserted = set()
        # A crash here repeats the transaction, which then inserts nothing; it cannot lose anything.
        await self._release(batch)
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

    async def _set_aside(self, item: Taken, closed: Sequence[sessions.ClosedSession], error: Exception) -> None:
        """Where an admin sees it: the record with its messages as they were, and what Postgres said."""
        log.error("record refused by Postgres, set aside", bot=item.strand.bot, error=str(error))
        REJECTED.inc()
        async with self._engine.begin() as conn:
            payload = msgpack.encode([item.strand, item.events, [each.messages for each in closed]])
            session_id = item.events[-1].session.id
            await rejects.add(conn, bot=item.strand.bot, session_id=session_id, error=str(error), payload=payload)

    async def _closed_sessions(self, batch: Sequence[Taken]) -> list[sessions.ClosedSession]:
        ends = [(item, event.session) for item in batch for event in item.events if event.type == "session.closed"]
        if len(ends) == 1:  # perhaps a very long one: the whole of it at once would hold up Redis
            item, session = ends[0]
            return [sessions.ClosedSession(item.strand, session, await self._view.messages(session.id))]
        transcripts = await self._pipe.call_all([("HGETALL", keys.messages(item.shard, session.id)) for item, session in ends])
        return [
            sessions.ClosedSession(item.strand, session, messages_of(transcript))
            for (item, session), transcript in zip(ends, transcripts, strict=True)
        ]

    async def _release(self, batch: Sequence[Taken]) -> None:
        by_shard: dict[int, list[Taken]] = {}
        for item in batch:
            by_shard.setdefault(item.shard, []).append(item)
        await self._pipe.call_all([_release(shard, items) for shard, items in by_shard.items()])


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
    ends = {event.session.id for event in item.events if event.type == "session.closed"}
    return [event for event in item.events if event.session.id not in ends or event.session.id in inserted]


def _release(shard: int, items: Sequence[Taken]) -> tuple[str | bytes | int, ...]:
    names = [keys.messages(shard, event.session.id) for item in items for event in item.events if event.type == "session.closed"]
    return (
        "EVAL",
        _RELEASE,
        2 + len(names),
        keys.events(shard),
        keys.counts(shard),
        *names,
        GROUP,
        REPEATS_KNOWN_MS,
        *(item.id for item in items),
    )


def _records(shard: int, reply: list[Any] | None) -> list[Taken]:
    """The records in a reply of XREADGROUP (streams of entries) or XAUTOCLAIM (a cursor, then entries)."""
    if not reply:
        return []
    entries = reply[0][1] if isinstance(reply[0], list) else reply[1]
    taken = []
    for entry in entries:
        if entry is None or not entry[1]:
            continue  # released by its own worker in the meantime
        record = _decode_record(entry[1][1])
        taken.append(Taken(shard, entry[0], Strand(record.bot, record.conversation, record.thread), record.events))
    return taken
