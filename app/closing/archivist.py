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
from msgspec import Struct
from redis.exceptions import ResponseError
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import deliveries, sessions
from app.archive.rows import ClosedSession
from app.clock import monotonic_ms
from app.closing.rejects import NoTranscript, is_wrong_type, set_aside
from app.domain.records import BotRules, Event, Message, Session
from app.domain.rules.continuation import continuation
from app.domain.rules.continuation import told as continued
from app.errors import Unavailable
from app.failpoints import failpoint
from app.failures import BadData
from app.live import keys
from app.live.event_stream import EventStream, StreamRecord
from app.live.pipe import Pipe
from app.live.view import View, messages_of
from app.metrics import ARCHIVED, CONTINUATIONS, REJECTED

log = structlog.get_logger(__name__)

# Of transcripts, as Redis holds them: so much is read and written at once, and a longer one goes alone, in portions.
_BYTES_AT_ONCE = 16 << 20
_SHORTEST_REST_MS = 100
_LONGEST_REST_MS = 2_000
# What is said of the data, by Postgres or by who reads it: anything else is about the server, and worth trying again.
REFUSED = (
    DataError,
    IntegrityError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    BadData,
    ValueError,
    OverflowError,
)


class _Part(Struct, frozen=True):
    """Records that are archived in one transaction. `long`: it is one, with too much to be read at once."""

    items: Sequence[StreamRecord]
    long: bool = False


class Archivist:
    """Archives what one consumer takes from the streams. `rules_of` gives a bot's rules: continuations are made by them."""

    def __init__(
        self, *, pipe: Pipe, streams: EventStream, engine: AsyncEngine, shards: int, rules_of: Callable[[str], BotRules]
    ) -> None:
        self._pipe = pipe
        self._streams = streams
        self._engine = engine
        self._rules_of = rules_of
        self._view = View(pipe, shards=shards)
        self._stopping = False
        self._rest_ms = 0
        self._rest_until_ms = 0.0

    async def run_once(self) -> int:
        """Archive everything that waits; returns how many records it was.

        After a failure it rests, ever longer: with Postgres away, reading what cannot be written only takes from the others.
        """
        if monotonic_ms() < self._rest_until_ms:
            return 0
        try:
            archived = await self._run()
        except Exception:
            self._rest_ms = min(max(2 * self._rest_ms, _SHORTEST_REST_MS), _LONGEST_REST_MS)
            self._rest_until_ms = monotonic_ms() + self._rest_ms
            raise
        self._rest_ms = 0
        return archived

    async def _run(self) -> int:
        """Reading goes on while a batch is written."""
        archived = 0
        batch = await self._streams.take()
        while batch:
            reading = asyncio.create_task(self._following())
            try:
                for part in _parts(batch, await self._sizes(batch)):
                    await self._archive(part)
            finally:
                following = await reading
            archived += len(batch)
            batch = following
        return archived

    def stop(self) -> None:
        """Take nothing more: a run that is under way ends with what it has taken."""
        self._stopping = True

    async def _following(self) -> list[StreamRecord]:
        return [] if self._stopping else await self._streams.take()

    async def _sizes(self, batch: Sequence[StreamRecord]) -> list[int]:
        """How many bytes of transcripts come with each record."""
        ended = [(index, keys.messages(item.shard, session)) for index, item in enumerate(batch) for session in item.ended]
        sizes = [0] * len(batch)
        replies = await self._pipe.call_all([("MEMORY", "USAGE", name) for _, name in ended])
        for (index, _), size in zip(ended, replies, strict=True):
            sizes[index] += size if isinstance(size, int) else 0
        return sizes

    async def _archive(self, part: _Part) -> None:
        """Archive and release. A record that cannot be read or written is set aside, so that its neighbours are not held up."""
        failpoint("archive.after_read")
        try:
            inserted = await self._write(part, await self._closed_sessions(part))
        except REFUSED as error:
            if len(part.items) > 1:
                middle = len(part.items) // 2
                await self._archive(_Part(part.items[:middle]))
                await self._archive(_Part(part.items[middle:]))
                return
            await self._set_aside(part.items[0], error)
            inserted = set()
        # A crash here repeats the transaction, which then inserts nothing; it cannot lose anything.
        await self._streams.release(part.items)
        failpoint("archive.after_release")
        ARCHIVED.inc(len(inserted))

    async def _write(self, part: _Part, closed: Sequence[ClosedSession]) -> set[str]:
        """One transaction; returns the ids of the sessions that are new to the archive."""
        async with self._engine.begin() as conn:
            inserted = await sessions.insert_closed(conn, closed)
            if part.long:
                await self._add_messages(conn, [item.session for item in closed if item.session.id in inserted])
            told = [(item.strand, event) for item in part.items for event in _told(item, inserted)]
            known = [item for item in closed if item.session.id not in inserted]
            if known:
                more = await self._continuations(conn, known, long=part.long)
                inserted |= await sessions.insert_closed(conn, more)
                told += [(item.strand, continued(item.session)) for item in more if item.session.id in inserted]
            await deliveries.enqueue(conn, told)
            failpoint("archive.before_commit")
        failpoint("archive.after_commit")
        return inserted

    async def _add_messages(self, conn: AsyncConnection, new: Sequence[Session]) -> None:
        for session in new:
            async for portion in self._view.portions(session.id):
                await sessions.add_messages(conn, session, messages_of(portion))

    async def _continuations(self, conn: AsyncConnection, known: Sequence[ClosedSession], *, long: bool) -> list[ClosedSession]:
        """What sessions that were archived before have collected since: only if Redis has lost its last moments."""
        held = await sessions.existing_message_ids(conn, [item.session for item in known])
        found = []
        for item in known:
            surplus = await self._surplus(item, held.get(item.session.id, set()), long=long)
            if surplus:
                CONTINUATIONS.inc()
                log.warning("session continued after a rollback", session=item.session.id, messages=len(surplus))
                session, messages = continuation(item.strand, item.session, surplus, self._rules_of(item.strand.bot).policy)
                found.append(ClosedSession(item.strand, session, messages, continuation_of=item.session.id))
        return found

    async def _surplus(self, item: ClosedSession, held: set[str], *, long: bool) -> list[Message]:
        """Its messages that the archive does not hold, in order."""
        if not long:
            return [message for message in item.messages if message.message_id not in held]
        surplus: list[Message] = []
        async for portion in self._view.portions(item.session.id):
            surplus += [message for message in messages_of(portion) if message.message_id not in held]
        return sorted(surplus, key=lambda message: message.sequence)

    async def _set_aside(self, item: StreamRecord, error: Exception) -> None:
        log.error("record set aside", bot=item.strand.bot, error=str(error))
        REJECTED.inc()
        await set_aside(self._engine, self._view, item, error)

    async def _closed_sessions(self, part: _Part) -> list[ClosedSession]:
        """What ended, with its messages if they are not too many. Raises `ValueError` if something cannot be read."""
        for item in part.items:
            if item.fault is not None:
                raise item.fault
        ends = [(item, event.session) for item in part.items for event in item.events if event.type == "session.closed"]
        if part.long:
            return [ClosedSession(item.strand, session, ()) for item, session in ends]
        transcripts = await self._pipe.call_all([("HGETALL", keys.messages(item.shard, session.id)) for item, session in ends])
        return [
            ClosedSession(item.strand, session, _messages(transcript))
            for (item, session), transcript in zip(ends, transcripts, strict=True)
        ]


def _parts(batch: Sequence[StreamRecord], sizes: Sequence[int]) -> Iterator[_Part]:
    """The batch in parts of a size that Redis and Postgres take at once; what is too long for that goes alone, and last.

    What cannot be read goes alone and first: all there is to do is to set it aside. A part that fails holds up nothing but
    itself: those before it are archived by then.
    """
    part: list[StreamRecord] = []
    room = _BYTES_AT_ONCE
    yield from (_Part([item]) for item in batch if item.fault is not None)
    readable = ((size, item) for size, item in zip(sizes, batch, strict=True) if item.fault is None)
    for size, item in sorted(readable, key=itemgetter(0)):
        if part and size > room:
            yield _Part(part)
            part, room = [], _BYTES_AT_ONCE
        if size > _BYTES_AT_ONCE:
            yield _Part([item], long=True)
            continue
        part.append(item)
        room -= size
    if part:
        yield _Part(part)


def _messages(transcript: list[bytes] | ResponseError) -> list[Message]:
    """Raises `ValueError` if what has its name is no transcript, or cannot be read."""
    if not isinstance(transcript, ResponseError):
        return messages_of(transcript)
    if is_wrong_type(transcript):
        raise NoTranscript(str(transcript))
    raise Unavailable(f"Redis gives out no transcript: {transcript}") from transcript


def _told(item: StreamRecord, inserted: set[str]) -> list[Event]:
    """The events that are news: a session that was archived before has told of its end before."""
    ends = set(item.ended)
    return [event for event in item.events if event.session.id not in ends or event.session.id in inserted]
