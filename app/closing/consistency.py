"""Checks what must always hold of the live state, and repairs, counts and logs what does not.

1. Every open session has a deadline: one without is woken, which writes its deadline anew.
   (The reverse needs no check: the sweep removes a deadline without an open session when it falls due.)
2. Every open session is found by its user; a missing one is added.
3. The counts of open sessions by channel add up to those that are open; else they are counted anew.
4. Every event record is undelivered, or pending with an archivist; else all records are delivered again.

One script writes all of it, so the product itself cannot break it. The check is for changes made to Redis from outside, and for
sessions that version 0.1.0 opened, which had no look-up by user and no counts by channel.
A repair is counted only where something was broken: each difference is read at one instant, by a script, since sessions open and
close meanwhile.
Lost sessions and records cannot be repaired: they show in `Totals.unaccounted`, which must be 0.
"""

import asyncio
from collections.abc import Sequence

import structlog
from msgspec import Struct

from app.closing.sweep import concerns_one, raise_first
from app.config.records import BotConfig
from app.domain.records import Wake
from app.live import keys
from app.live.channels import repair_channels
from app.live.event_stream import GROUP
from app.live.fold import CommandOutcome
from app.live.ledger import Ledger
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe
from app.live.users import pages, repair_users
from app.live.view import strands_in
from app.metrics import BACKLOG, OPEN, REPAIRS, UNACCOUNTED

log = structlog.get_logger(__name__)

_WITHOUT_DEADLINE = LuaScript(read_source("app.closing", "without_deadline.lua"))
_TOTALS = LuaScript(read_source("app.closing", "totals.lua"))
_REDELIVER = LuaScript(read_source("app.closing", "redeliver.lua"))


class Totals(Struct, frozen=True):
    """Of all shards: what was counted since the start, and what is there now.

    opened    sessions opened
    closed    sessions closed
    written   event records written to the streams
    released  event records released by the archivists
    open      sessions open now
    pending   event records in the streams now
    """

    opened: int = 0
    closed: int = 0
    written: int = 0
    released: int = 0
    open: int = 0
    pending: int = 0

    @property
    def unaccounted(self) -> int:
        """Sessions that were opened and are neither open nor closed, and event records neither waiting nor released."""
        return abs(self.opened - self.closed - self.open) + abs(self.written - self.released - self.pending)


class ConsistencyCheck:
    """Checks and repairs all shards."""

    def __init__(self, *, pipe: Pipe, ledger: Ledger, shards: int) -> None:
        self._pipe = pipe
        self._ledger = ledger
        self._shards = shards

    async def totals(self, bots: Sequence[BotConfig]) -> Totals:
        """The totals of `bots`, which must be all bots that ever were."""
        replies = await self._pipe.call_all([_TOTALS.command(_names(shard, bots)) for shard in range(self._shards)])
        return Totals(*(sum(map(int, column)) for column in zip(*replies, strict=True)))

    async def measure(self, bots: Sequence[BotConfig]) -> None:
        """Set the metrics that are made of the totals."""
        totals = await self.totals(bots)
        OPEN.set(totals.open)
        BACKLOG.set(totals.pending)
        UNACCOUNTED.set(totals.unaccounted)

    async def run_once(self, bots: Sequence[BotConfig]) -> int:
        """Check everything once and repair it; returns how many repairs were made."""
        repairs = 0
        for shard in range(self._shards):
            for bot in bots:
                repairs += await self._wake_without_deadline(shard, bot)
                repairs += await repair_users(self._pipe, shard, bot.id)
            repairs += await repair_channels(self._pipe, shard, [bot.id for bot in bots])
            repairs += int(await _REDELIVER.call(self._pipe, [keys.events(shard)], GROUP))
        if repairs:
            REPAIRS.inc(repairs)
            log.warning("live state repaired", repairs=repairs)
        return repairs

    async def _wake_without_deadline(self, shard: int, bot: BotConfig) -> int:
        live, due = keys.live(shard, bot.id), keys.due(shard, bot.id if bot.sandbox else None)
        woken = 0
        async for members in pages(self._pipe, live):
            lost = strands_in(await _WITHOUT_DEADLINE.call(self._pipe, [live, due], *members), of=live)
            at_ms = 0 if bot.sandbox else None
            wakes = (self._ledger.submit(strand, Wake(), at_ms=at_ms) for strand in lost)
            results = await asyncio.gather(*wakes, return_exceptions=True)
            raise_first([result for result in results if isinstance(result, BaseException) and not concerns_one(result)])
            woken += sum(isinstance(result, CommandOutcome) for result in results)
        return woken


def _names(shard: int, bots: Sequence[BotConfig]) -> list[str]:
    return [keys.counts(shard), keys.events(shard), *(keys.live(shard, bot.id) for bot in bots)]
