"""The event streams of all shards, as one consumer reads them: a record is read, stays pending, and is released in the end.

At least once: a record whose consumer died is claimed by another after `claim_idle_ms`, and one that was released is never read
again. Records are taken in the order of each stream, but for `overtake`: the records of a bot with few need not wait behind
those of a bot with many.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog
from msgspec import Struct
from redis.exceptions import ResponseError

from app.clock import monotonic_ms
from app.domain.records import Event, EventType, UnassignedEntry
from app.domain.rules.ending import RECENT_MS
from app.domain.strand import Strand
from app.failures import BadData
from app.live import keys
from app.live.codec import UNREADABLE, decode_record, encode
from app.live.lua import LuaScript, read_source
from app.live.pipe import Argument, Pipe

log = structlog.get_logger(__name__)

GROUP = "archive"
_PAGE = 200
_OVERTAKEN_AT_ONCE = 1_000  # records of a shard, of 2 KB, that one script call reads

_RELEASE = LuaScript(read_source("app.live", "release.lua"))
_OVERTAKE = LuaScript(read_source("app.live", "overtake.lua"))
_NO_STRAND = Strand("", "")
_START = b"0-0"


class StreamRecord(Struct, frozen=True):
    """A record that was read and is not yet released. `fault`: why it cannot be decoded; then `raw` is all there is."""

    shard: int
    id: bytes
    raw: bytes
    strand: Strand = _NO_STRAND
    events: tuple[Event, ...] = ()
    unassigned: tuple[UnassignedEntry, ...] = ()
    fault: BadData | None = None

    @property
    def ended(self) -> list[str]:
        """The ids of the sessions that it closed."""
        return self._sessions("session.closed")

    @property
    def updated(self) -> list[str]:
        """The ids of the closed sessions that got late entries."""
        return self._sessions("session.updated")

    def _sessions(self, event_type: EventType) -> list[str]:
        if len(self.events) == 1:  # as of nearly all records
            return [self.events[0].session.id] if self.events[0].type == event_type else []
        return list(dict.fromkeys(event.session.id for event in self.events if event.type == event_type))


class EventStream:
    """One consumer of all shards' streams. `batch` is about how many records it reads at once."""

    def __init__(self, *, pipe: Pipe, shards: int, consumer: str, batch: int, claim_idle_ms: int) -> None:
        self._pipe = pipe
        self._shards = shards
        self._consumer = consumer
        self._a_shard = max(1, batch // shards)
        self._claim_idle_ms = claim_idle_ms
        self._grouped = False
        self._claim_at_ms = 0.0
        self._retry_after: list[bytes] = []  # by shard: the last record that was taken again; empty if there is nothing to retry
        self._looked_at: list[bytes] = [_START] * shards  # by shard: the last record that was read, in order or by `overtake`
        self._overtaking: set[tuple[int, bytes]] = set()  # taken by `overtake`, and not released yet

    def retry(self) -> None:
        """Take again, before anything else, the records that this consumer took and has not released."""
        self._retry_after = [b"0"] * self._shards

    async def take(self, *, new: bool = True) -> list[StreamRecord]:
        """The next records: those to retry, then those that a dead consumer left, then new ones.

        Without `new`, only those to retry.
        """
        if not self._grouped:
            await self._make_groups()
        retried = await self._read_own() if self._retry_after else []
        if retried or not new:
            return retried
        if monotonic_ms() >= self._claim_at_ms:
            claimed = await self._claim()
            if claimed:
                return claimed
            self._claim_at_ms = monotonic_ms() + self._claim_idle_ms
        return await self._read()

    async def overtake(self, bots: frozenset[str]) -> list[StreamRecord]:
        """The next records of all bots but these, however many of these stand before them.

        Each record is looked at once, and only so many in one call: an empty answer does not say that there is none.
        """
        passed = [encode(bot) for bot in bots]
        counts = _OVERTAKEN_AT_ONCE, min(self._a_shard, _OVERTAKEN_AT_ONCE)
        commands = [
            _OVERTAKE.command([keys.events(shard)], GROUP, self._consumer, self._claim_idle_ms, after, *counts, *passed)
            for shard, after in enumerate(self._looked_at)
        ]
        found = []
        for shard, reply in enumerate(await self._pipe.call_all(commands)):
            if isinstance(reply, ResponseError):
                self._warn(shard, reply)
                continue
            self._looked_at[shard] = reply[0]
            found += [_record(shard, entry[0], entry[1][1]) for entry in reply[1] if entry is not None and entry[1]]
        self._overtaking.update((record.shard, record.id) for record in found)
        return found

    async def _read(self) -> list[StreamRecord]:
        """The next records in order, without those that have overtaken them."""
        read = "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", self._a_shard, "STREAMS"
        while found := await self._read_all([(*read, keys.events(shard), ">") for shard in range(self._shards)]):
            latest = {record.shard: record.id for record in found}  # each shard's are in order
            for shard, last in latest.items():
                self._looked_at[shard] = max(self._looked_at[shard], last, key=_place)
            if not self._overtaking:
                return found
            if records := [record for record in found if (record.shard, record.id) not in self._overtaking]:
                return records
        self._overtaking.clear()
        return []

    async def _read_own(self) -> list[StreamRecord]:
        """A page of this consumer's own pending records, shard by shard."""
        read = "XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", self._a_shard, "STREAMS"
        found = await self._read_all([(*read, keys.events(shard), after) for shard, after in enumerate(self._retry_after)])
        for record in found:
            self._retry_after[record.shard] = record.id
        if not found:
            self._retry_after = []
        return found

    async def release(self, batch: Sequence[StreamRecord]) -> None:
        """Acknowledge and delete these records; the transcripts of the sessions that they closed or updated soon expire."""
        by_shard: dict[int, list[StreamRecord]] = {}
        for item in batch:
            by_shard.setdefault(item.shard, []).append(item)
        await self._pipe.call_all([_release(shard, items) for shard, items in by_shard.items()])
        if self._overtaking:
            self._overtaking.difference_update((item.shard, item.id) for item in batch)

    async def _make_groups(self) -> None:
        """Create the consumer group of each shard; one that exists stays as it is."""
        replies = await self._pipe.call_all(
            [("XGROUP", "CREATE", keys.events(shard), GROUP, 0, "MKSTREAM") for shard in range(self._shards)]
        )
        self._grouped = True
        for shard, reply in enumerate(replies):
            if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
                self._warn(shard, reply)

    async def _claim(self) -> list[StreamRecord]:
        return await self._read_all(
            [
                ("XAUTOCLAIM", keys.events(shard), GROUP, self._consumer, self._claim_idle_ms, "0", "COUNT", self._a_shard)
                for shard in range(self._shards)
            ]
        )

    async def _read_all(self, commands: Sequence[tuple[Argument, ...]]) -> list[StreamRecord]:
        records = []
        for shard, reply in enumerate(await self._pipe.call_all(commands)):
            if isinstance(reply, ResponseError):
                self._warn(shard, reply)
            else:
                records.extend(_records(shard, reply))
        return records

    def _warn(self, shard: int, error: ResponseError) -> None:
        """A shard that fails does not stop the others. If its group was deleted, the next read creates it again."""
        self._grouped = False
        log.warning("event stream of a shard cannot be read", shard=shard, error=str(error))


async def latest_records(pipe: Pipe, *, shards: int, count: int) -> list[StreamRecord]:
    """The latest records that are not released, `count` of each shard at most, the latest first. It takes none of them."""
    replies = await pipe.call_all([("XREVRANGE", keys.events(shard), "+", "-", "COUNT", count) for shard in range(shards)])
    found = [(shard, reply) for shard, reply in enumerate(replies) if not isinstance(reply, ResponseError)]
    return [_record(shard, entry[0], entry[1][1]) for shard, reply in found for entry in reply]


async def waiting_records(pipe: Pipe, *, shards: int) -> AsyncIterator[StreamRecord]:
    """Every record that is not released, shard by shard, the oldest first. It takes none of them."""
    for shard in range(shards):
        start: str | bytes = "-"
        while entries := await pipe.call("XRANGE", keys.events(shard), start, "+", "COUNT", _PAGE):
            for entry, fields in entries:
                yield _record(shard, entry, fields[1])
            start = b"(" + entries[-1][0]


def _place(record_id: bytes) -> tuple[int, int]:
    ms, _, sequence = record_id.partition(b"-")
    return int(ms), int(sequence)


def _records(shard: int, reply: list[Any] | None) -> list[StreamRecord]:
    """The records in a reply of XREADGROUP (streams of entries) or XAUTOCLAIM (a cursor, then entries)."""
    if not reply:
        return []
    entries = reply[0][1] if isinstance(reply[0], list) else reply[1]
    # An entry without fields was released by its own consumer in the meantime.
    return [_record(shard, entry[0], entry[1][1]) for entry in entries if entry is not None and entry[1]]


def _record(shard: int, entry: bytes, raw: bytes) -> StreamRecord:
    try:
        record = decode_record(raw)
    except UNREADABLE as error:
        return StreamRecord(shard, entry, raw, fault=BadData(f"the record cannot be read: {error}"))
    strand = Strand(record.bot, record.conversation, record.thread)
    return StreamRecord(shard, entry, raw, strand, record.events, record.unassigned)


def _release(shard: int, items: Sequence[StreamRecord]) -> tuple[Argument, ...]:
    names = [keys.messages(shard, session) for item in items for session in (*item.ended, *item.updated)]
    return _RELEASE.command([keys.events(shard), keys.counts(shard), *names], GROUP, RECENT_MS, *(item.id for item in items))
