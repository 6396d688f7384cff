"""The shards' event streams as one consumer has them: a record is taken, stays pending with it, and is released in the end.

A record that nobody releases, since its consumer died, is taken by another one after a while.
"""

from collections.abc import Sequence
from typing import Any

import structlog
from msgspec import Struct
from redis.exceptions import ResponseError

from app.clock import monotonic_ms
from app.domain.records import Event
from app.domain.strand import Strand
from app.failures import BadData
from app.live import keys
from app.live.codec import UNREADABLE, decode_record
from app.live.lua import LuaScript, read_source
from app.live.pipe import Argument, Pipe

log = structlog.get_logger(__name__)

GROUP = "archive"
# A repeat of an entry is known for this long after its session closed (`docs/rules.md`, "What is remembered").
REPEATS_KNOWN_MS = 15 * 60_000

_RELEASE = LuaScript(read_source("app.live", "release.lua"))
_NO_STRAND = Strand("", "")


class StreamRecord(Struct, frozen=True):
    """A record of a shard's stream, taken but not yet released. `fault`: why it cannot be read; then `raw` is all there is."""

    shard: int
    id: bytes
    raw: bytes
    strand: Strand = _NO_STRAND
    events: tuple[Event, ...] = ()
    fault: BadData | None = None

    @property
    def ended(self) -> list[str]:
        """The ids of the sessions that it closes."""
        return [event.session.id for event in self.events if event.type == "session.closed"]


class EventStream:
    """One consumer of all shards' streams. `batch` is about how many records it takes at once."""

    def __init__(self, *, pipe: Pipe, shards: int, consumer: str, batch: int, claim_idle_ms: int) -> None:
        self._pipe = pipe
        self._shards = shards
        self._consumer = consumer
        self._a_shard = max(1, batch // shards)
        self._claim_idle_ms = claim_idle_ms
        self._grouped = False
        self._claim_at_ms = 0.0

    async def take(self) -> list[StreamRecord]:
        """What waits; what a dead consumer left is looked for now and then, and comes before what is new."""
        if not self._grouped:
            await self._make_groups()
        if monotonic_ms() >= self._claim_at_ms:
            left = await self._claim()
            if left:
                return left
            self._claim_at_ms = monotonic_ms() + self._claim_idle_ms
        return await self._read()

    async def _read(self) -> list[StreamRecord]:
        return await self._ask(
            [
                ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", self._a_shard, "STREAMS", keys.events(shard), ">")
                for shard in range(self._shards)
            ]
        )

    async def release(self, batch: Sequence[StreamRecord]) -> None:
        """Let Redis forget these records, and in a while the transcripts of what they closed."""
        by_shard: dict[int, list[StreamRecord]] = {}
        for item in batch:
            by_shard.setdefault(item.shard, []).append(item)
        await self._pipe.call_all([_release(shard, items) for shard, items in by_shard.items()])

    async def _make_groups(self) -> None:
        """The consumer group of each shard; one that exists stays as it is."""
        replies = await self._pipe.call_all(
            [("XGROUP", "CREATE", keys.events(shard), GROUP, 0, "MKSTREAM") for shard in range(self._shards)]
        )
        self._grouped = True
        for shard, reply in enumerate(replies):
            if isinstance(reply, ResponseError) and "BUSYGROUP" not in str(reply):
                self._complain(shard, reply)

    async def _claim(self) -> list[StreamRecord]:
        return await self._ask(
            [
                ("XAUTOCLAIM", keys.events(shard), GROUP, self._consumer, self._claim_idle_ms, "0", "COUNT", self._a_shard)
                for shard in range(self._shards)
            ]
        )

    async def _ask(self, commands: Sequence[tuple[str | int, ...]]) -> list[StreamRecord]:
        taken = []
        for shard, reply in enumerate(await self._pipe.call_all(commands)):
            if isinstance(reply, ResponseError):
                self._complain(shard, reply)
            else:
                taken.extend(_records(shard, reply))
        return taken

    def _complain(self, shard: int, error: ResponseError) -> None:
        """One shard that is broken does not stop the others. If its group is gone, it is made again next time."""
        self._grouped = False
        log.warning("a shard gives out no records", shard=shard, error=str(error))


def _records(shard: int, reply: list[Any] | None) -> list[StreamRecord]:
    """The records in a reply of XREADGROUP (streams of entries) or XAUTOCLAIM (a cursor, then entries)."""
    if not reply:
        return []
    entries = reply[0][1] if isinstance(reply[0], list) else reply[1]
    # An entry without fields was released by its own consumer in the meantime.
    return [_taken(shard, entry[0], entry[1][1]) for entry in entries if entry is not None and entry[1]]


def _taken(shard: int, entry: bytes, raw: bytes) -> StreamRecord:
    try:
        record = decode_record(raw)
    except UNREADABLE as error:
        return StreamRecord(shard, entry, raw, fault=BadData(f"the record cannot be read: {error}"))
    return StreamRecord(shard, entry, raw, Strand(record.bot, record.conversation, record.thread), record.events)


def _release(shard: int, items: Sequence[StreamRecord]) -> tuple[Argument, ...]:
    names = [keys.messages(shard, session) for item in items for session in item.ended]
    return _RELEASE.command(
        [keys.events(shard), keys.counts(shard), *names], GROUP, REPEATS_KNOWN_MS, *(item.id for item in items)
    )
