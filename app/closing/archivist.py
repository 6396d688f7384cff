"""The loop from the event streams to Postgres: take records, archive them, release them.

    EventStream.take ──> Transcripts ──> archive_batch, one transaction ──> EventStream.release
                                              │ bad data
                                              └──> bisect ──> reject one record ──> release it

A crash between any two steps repeats a step; it cannot lose one: a record stays pending until it is released, a session's id is
the primary key, a delivery's id is made of session, endpoint and event.

Only bad data (`app.failures`) is rejected. After any other failure the records stay pending and are tried again, ever less
often. Where more is bad than may be (`RejectLimit`), the fault is probably ours: the archivist then takes nothing new, publishes
why, and tries the pending records until they go through.

Between two transactions of a backlog come the records of those bots that have few in it (`EventStream.overtake`): they wait for
one transaction, not for all.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app.clock import monotonic_ms
from app.closing.archive_batch import Archived, Batch, RulesOf, archive_batch
from app.closing.rejects import RejectLimit, RejectLimitReached, reject
from app.closing.transcripts import Part, Transcripts, split
from app.failpoints import failpoint
from app.failures import failure_of
from app.live import keys
from app.live.event_stream import EventStream, StreamRecord
from app.live.pipe import Pipe
from app.metrics import ARCHIVED, REJECTED

log = structlog.get_logger(__name__)

_SHORTEST_REST_MS = 100
_LONGEST_REST_MS = 2_000
# Published anew at each try, of which there is one in `_LONGEST_REST_MS`; the worker's death ends it.
_STOPPED_FOR_MS = 30_000
# A bot with so many records, or with transcripts of so many times `_RECORD_BYTES`, is never overtaken: it delays others little.
_FEW = 32
_RECORD_BYTES = 4_096
# Of a transaction, while other bots have records too: each waits for one that is under way. A record may have many deliveries.
_MS_BESIDE_OTHERS = 200
_RECORDS_BESIDE_OTHERS = (25, 250)


class Backlog:
    """How much each bot had in what was read lately: records, and transcripts by their size."""

    def __init__(self) -> None:
        self._weights: Counter[str] = Counter()
        self._ms_a_record = 0.0

    def fade(self) -> None:
        """Halve what was counted: another batch is read."""
        self._weights = Counter({bot: weight // 2 for bot, weight in self._weights.items() if weight > 1})

    def count(self, records: Sequence[StreamRecord], sizes: Sequence[int]) -> None:
        for record, size in zip(records, sizes, strict=True):
            self._weights[record.strand.bot] += 1 + size // _RECORD_BYTES

    def largest(self) -> frozenset[str]:
        """The bots with more than half of the mean: others overtake them."""
        least = max(_FEW, self._weights.total() / max(1, len(self._weights)) / 2)
        return frozenset(bot for bot, weight in self._weights.items() if weight > least)

    def note_duration(self, ms: float, *, records: int) -> None:
        """A transaction took so long."""
        if records >= _RECORDS_BESIDE_OTHERS[0]:
            self._ms_a_record = ms / records

    def most_at_once(self, records: int) -> int:
        """How many of so many records to write in one transaction: all, unless bots with few wait beside bots with many."""
        if not 0 < len(self.largest()) < len(self._weights):
            return records
        fewest, most = _RECORDS_BESIDE_OTHERS
        return max(fewest, min(most, int(_MS_BESIDE_OTHERS / self._ms_a_record))) if self._ms_a_record else most


class Archivist:
    """Archives what one consumer takes from the streams. `rules_of` gives a bot's rules: continuations are counted by them."""

    def __init__(
        self,
        *,
        pipe: Pipe,
        streams: EventStream,
        engine: AsyncEngine,
        shards: int,
        rules_of: RulesOf,
        reject_limit: RejectLimit,
    ) -> None:
        self._pipe = pipe
        self._streams = streams
        self._engine = engine
        self._rules_of = rules_of
        self._reject_limit = reject_limit
        self._transcripts = Transcripts(pipe, shards=shards)
        self._stopping = False
        self._taking = asyncio.Lock()
        self._ending = False  # nothing was left to take in this run, or a batch of it has failed
        self._backlog = Backlog()
        self._over_limit = False
        self._deferred = 0
        self._rest_ms = 0
        self._rest_until_ms = 0.0

    async def run_once(self) -> int:
        """Archive everything that waits; returns how many records were read.

        After a failure it rests, ever longer: while Postgres is unreachable, reading what cannot be written only takes time
        from others.
        """
        if monotonic_ms() < self._rest_until_ms:
            return 0
        try:
            archived = await self._run()
        except Exception as error:
            self._streams.retry()
            self._rest_ms = min(max(2 * self._rest_ms, _SHORTEST_REST_MS), _LONGEST_REST_MS)
            self._rest_until_ms = monotonic_ms() + self._rest_ms
            if isinstance(error, RejectLimitReached):
                await self._publish_stop(str(error))
            raise
        self._rest_ms = 0
        if self._deferred:
            self._streams.retry()
        if self._over_limit:
            await self._publish_resume()
        return archived

    def stop(self) -> None:
        """Take nothing more: a run in progress ends with what it has taken."""
        self._stopping = True

    async def _run(self) -> int:
        """Two batches are under way at once, as two workers have them: one is read and made ready while another is written."""
        self._deferred = 0
        self._ending = False
        first = await self._take()
        if not first:
            return 0
        counts = await asyncio.gather(self._archive_batches(first), self._archive_batches([]), return_exceptions=True)
        for error in counts:
            if isinstance(error, BaseException):
                raise error
        return sum(count for count in counts if isinstance(count, int))

    async def _archive_batches(self, batch: list[StreamRecord]) -> int:
        """Archive this batch, and the next ones until there is none or another fails; returns how many records there were."""
        archived = 0
        try:
            while batch := batch or await self._take():
                self._backlog.fade()
                for part in await self._parts(batch):
                    await self._archive(part)
                    archived += await self._archive_others()
                archived += len(batch)
                batch = []
        except BaseException:
            self._ending = True
            raise
        return archived

    async def _take(self) -> list[StreamRecord]:
        async with self._taking:
            if self._stopping or self._ending:
                return []
            batch = await self._streams.take(new=not self._over_limit)
            self._ending = not batch
            return batch

    async def _archive_others(self) -> int:
        """Archive the next records of bots that have few behind those that have many; returns how many there were."""
        largest = self._backlog.largest()
        if not largest:
            return 0
        async with self._taking:
            others = [] if self._stopping or self._over_limit else await self._streams.overtake(largest)
        for part in await self._parts(others) if others else ():
            await self._archive(part)
        return len(others)

    async def _parts(self, records: Sequence[StreamRecord]) -> Iterator[Part]:
        """The records in parts for one transaction each, those of bots with few first."""
        sizes = await self._transcripts.sizes(records)
        self._backlog.count(records, sizes)
        return split(records, sizes, last=self._backlog.largest(), most=self._backlog.most_at_once(len(records)))

    async def _archive(self, part: Part) -> None:
        """Archive a part and release it. Bad data is searched for by halves, so that one bad record rejects no other."""
        failpoint("archive.after_read")
        try:
            done = await self._write(part)
        except Exception as error:
            if failure_of(error) != "bad_data":
                raise
            if len(part.records) > 1:
                middle = len(part.records) // 2
                await self._archive(Part(part.records[:middle]))
                await self._archive(Part(part.records[middle:]))
                return
            await self._reject(part.records[0], error)
            done = Archived(set())
        else:
            self._reject_limit.count(len(part.records) - len(done.deferred), rejected=False)
        self._deferred += len(done.deferred)
        # A crash here repeats the transaction, which then inserts nothing; it cannot lose anything.
        await self._streams.release([record for record in part.records if record not in done.deferred])
        failpoint("archive.after_release")
        ARCHIVED.inc(len(done.inserted))

    async def _write(self, part: Part) -> Archived:
        """One transaction."""
        closed = await self._transcripts.closed_sessions(part)
        batch = Batch(part.records, closed, self._transcripts.portions if part.long else None)
        began_ms = monotonic_ms()
        async with self._engine.begin() as conn:
            done = await archive_batch(conn, batch, rules_of=self._rules_of)
            failpoint("archive.before_commit")
        self._backlog.note_duration(monotonic_ms() - began_ms, records=len(part.records))
        failpoint("archive.after_commit")
        return done

    async def _reject(self, record: StreamRecord, error: Exception) -> None:
        """Keep a bad record in Postgres. Raises `RejectLimitReached` if too many were bad lately; then it stays pending."""
        self._reject_limit.check(error)
        log.error("record rejected", bot=record.strand.bot, sessions=record.ended, error=str(error))
        await reject(self._engine, self._transcripts, record, error)
        self._reject_limit.count(1, rejected=True)
        REJECTED.inc()

    async def _publish_stop(self, why: str) -> None:
        """For `/readyz`; over the limit, no new record is taken."""
        self._over_limit = True
        await self._pipe.call("SET", keys.ARCHIVE_STOPPED, why, "PX", _STOPPED_FOR_MS)

    async def _publish_resume(self) -> None:
        self._over_limit = False
        log.warning("archiving goes on")
        await self._pipe.call("DEL", keys.ARCHIVE_STOPPED)
