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

An idle shard costs the same however many bots there are: the counts by channel name the bots that have open sessions. The sets of
all other bots, where only a change from outside can have left something, are looked at one after the other, some at each run.
"""

import asyncio
from collections.abc import Collection, Sequence

import structlog
from msgspec import Struct

from app.closing.sweep import concerns_one, raise_first
from app.config.records import BotConfig
from app.domain.records import Wake
from app.live import keys
from app.live.channels import bots_with_sessions, repair_channels
from app.live.event_stream import GROUP
from app.live.fold import CommandOutcome
from app.live.ledger import Ledger
from app.live.lua import LuaScript, read_source
from app.live.pipe import Argument, Pipe
from app.live.users import pages, repair_users
from app.live.view import strands_in
from app.metrics import BACKLOG, OPEN, REPAIRS, UNACCOUNTED

log = structlog.get_logger(__name__)

_WITHOUT_DEADLINE = LuaScript(read_source("app.closing", "without_deadline.lua"))
_TOTALS = LuaScript(read_source("app.closing", "totals.lua"))
_REDELIVER = LuaScript(read_source("app.closing", "redeliver.lua"))
_OCCUPIED = LuaScript(read_source("app.closing", "occupied.lua"))
_BOTS_A_RUN = 1_000


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
    """Checks and repairs all shards, or those that a worker holds."""

    def __init__(self, *, pipe: Pipe, ledger: Ledger, shards: int) -> None:
        self._pipe = pipe
        self._ledger = ledger
        self._shards = shards
        self._next_bot = 0

    async def totals(self, shards: Sequence[int] | None = None) -> Totals:
        """The totals of all shards, or of these."""
        names = [_totals(shard) for shard in (range(self._shards) if shards is None else shards)]
        replies = await self._pipe.call_all(names)
        raise_first([reply for reply in replies if isinstance(reply, BaseException)])
        return Totals(*(sum(map(int, column)) for column in zip(*replies, strict=True)))

    async def measure(self, shards: Sequence[int]) -> None:
        """Set the metrics that are made of the totals. One worker measures each shard, so that sums over workers are right."""
        totals = await self.totals(shards)
        OPEN.set(totals.open)
        BACKLOG.set(totals.pending)
        UNACCOUNTED.set(totals.unaccounted)

    async def run_once(self, bots: Sequence[BotConfig], *, shards: Sequence[int] | None = None) -> int:
        """Check all shards, or these, once; returns how many repairs were made. `bots` are all bots that ever were."""
        checked = range(self._shards) if shards is None else shards
        open_in = await bots_with_sessions(self._pipe, shards=checked)
        next_bots = self._next(bots)
        repairs = 0
        for shard in checked:
            occupied = await self._occupied(shard, bots, open_in[shard], next_bots)
            for bot in occupied:
                repairs += await self._wake_without_deadline(shard, bot)
                repairs += await repair_users(self._pipe, shard, bot.id)
            repairs += await repair_channels(self._pipe, shard, [bot.id for bot in occupied])
            repairs += int(await _REDELIVER.call(self._pipe, [keys.events(shard)], GROUP))
        if repairs:
            REPAIRS.inc(repairs)
            log.warning("live state repaired", repairs=repairs)
        return repairs

    def _next(self, bots: Sequence[BotConfig]) -> list[BotConfig]:
        """The next bots in the order; all, if they are few."""
        start = self._next_bot if self._next_bot < len(bots) else 0
        self._next_bot = start + _BOTS_A_RUN
        return list(bots[start : self._next_bot])

    async def _occupied(
        self, shard: int, bots: Sequence[BotConfig], with_sessions: Collection[str], next_bots: Sequence[BotConfig]
    ) -> list[BotConfig]:
        """The bots that have something in this shard: by its counts, or, of the next ones, by their sets."""
        names = [name for bot in next_bots for name in (keys.live(shard, bot.id), keys.users(shard, bot.id))]
        places = await _OCCUPIED.call(self._pipe, names) if names else []
        found = {next_bots[int(place)].id for place in places}
        return [bot for bot in bots if bot.id in with_sessions or bot.id in found]

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


def _totals(shard: int) -> tuple[Argument, ...]:
    return _TOTALS.command([keys.counts(shard), keys.events(shard), keys.channels(shard)], keys.live(shard, ""))
