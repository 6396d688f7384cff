"""What must always hold of the live state, looked at again and again; what does not hold is repaired, counted and logged.

1. Every open session is due some time: one without a deadline is woken, which writes its deadline anew.
   (The reverse needs no look: what is due without being open is taken out by the sweep when its time comes.)
2. Every event record is still to be given to an archivist or pending with one; else all records are given out again.

Neither can be broken by what the product does, since one script writes all of it; they hold against what is done to Redis
from outside. What cannot be repaired, because it is gone, shows in `Totals.unaccounted`, which must be 0.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

import structlog
from msgspec import Struct

from app.closing.failures import concerns_one, raise_first
from app.config.records import BotConfig
from app.domain.records import Wake
from app.live import keys
from app.live.event_stream import GROUP
from app.live.fold import CommandOutcome
from app.live.ledger import Ledger
from app.live.pipe import Pipe
from app.live.view import strands_in
from app.metrics import REPAIRS

log = structlog.get_logger(__name__)

_A_PAGE = 1_000

# KEYS [1] counts, [2] event stream, then the bots' sets of open sessions. Returns what was counted and what is there, at once.
_TOTALS = """
local open = 0
for i = 3, #KEYS do
  open = open + redis.call('ZCARD', KEYS[i])
end
local counts = redis.call('HMGET', KEYS[1], 'opened', 'closed', 'told', 'released')
return { counts[1] or '0', counts[2] or '0', counts[3] or '0', counts[4] or '0', open, redis.call('XLEN', KEYS[2]) }
"""

# KEYS [1] event stream. ARGV [1] group. Returns 1 if records were in nobody's hands and are given out again, else 0.
# A stream with much to read is not counted through: that can wait until the archivists have worked it off.
_GIVE_OUT_AGAIN = """
if redis.call('XLEN', KEYS[1]) == 0 then
  return 0
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local info = {}
  for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
  if info['name'] == ARGV[1] then
    local waiting = #redis.call('XRANGE', KEYS[1], '(' .. info['last-delivered-id'], '+', 'COUNT', 10000)
    if waiting < 10000 and redis.call('XLEN', KEYS[1]) > info['pending'] + waiting then
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], '0')
      return 1
    end
  end
end
return 0
"""


class Totals(Struct, frozen=True):
    """What all shards have counted, and what is there."""

    opened: int = 0
    closed: int = 0
    told: int = 0
    released: int = 0
    open: int = 0
    pending: int = 0

    @property
    def unaccounted(self) -> int:
        """Sessions that were opened and are neither open nor closed, and event records neither waiting nor released."""
        return abs(self.opened - self.closed - self.open) + abs(self.told - self.released - self.pending)


class ConsistencyCheck:
    """Looks and repairs, over all shards."""

    def __init__(self, *, pipe: Pipe, ledger: Ledger, shards: int) -> None:
        self._pipe = pipe
        self._ledger = ledger
        self._shards = shards

    async def totals(self, bots: Sequence[BotConfig]) -> Totals:
        """What there is of `bots`, which must be all there have ever been."""
        replies = await self._pipe.call_all(
            [("EVAL", _TOTALS, 2 + len(bots), *_names(shard, bots)) for shard in range(self._shards)]
        )
        return Totals(*(sum(map(int, column)) for column in zip(*replies, strict=True)))

    async def run_once(self, bots: Sequence[BotConfig]) -> int:
        """Look at everything once and repair it; returns how many repairs were made."""
        repairs = 0
        for shard in range(self._shards):
            for bot in bots:
                repairs += await self._wake_those_without_deadline(shard, bot)
            repairs += int(await self._pipe.call("EVAL", _GIVE_OUT_AGAIN, 1, keys.events(shard), GROUP))
        if repairs:
            REPAIRS.inc(repairs)
            log.warning("invariants repaired", repairs=repairs)
        return repairs

    async def _wake_those_without_deadline(self, shard: int, bot: BotConfig) -> int:
        due = keys.due(shard, bot.id if bot.sandbox else None)
        woken = 0
        async for members in self._pages(keys.live(shard, bot.id)):
            deadlines = await self._pipe.call("ZMSCORE", due, *members)
            without = [member for member, deadline in zip(members, deadlines, strict=True) if deadline is None]
            lost = strands_in(without, of=keys.live(shard, bot.id))
            # A session that closed between the two reads is woken for nothing, which changes nothing.
            at_ms = 0 if bot.sandbox else None
            wakes = (self._ledger.submit(strand, Wake(), at_ms=at_ms) for strand in lost)
            results = await asyncio.gather(*wakes, return_exceptions=True)
            raise_first([result for result in results if isinstance(result, BaseException) and not concerns_one(result)])
            woken += sum(isinstance(result, CommandOutcome) for result in results)
        return woken

    async def _pages(self, name: str) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            cursor, found = await self._pipe.call("ZSCAN", name, cursor, "COUNT", _A_PAGE)
            if found:
                yield found[::2]
            if cursor == b"0":
                return


def _names(shard: int, bots: Sequence[BotConfig]) -> list[str]:
    return [keys.counts(shard), keys.events(shard), *(keys.live(shard, bot.id) for bot in bots)]
