"""The time of sandbox bots, kept in Redis: it moves forward only, when told to or with the `sent_at` of entries."""

from app.domain.instants import rfc3339
from app.errors import Conflict, Fault, Invalid
from app.live import keys
from app.live.pipe import Pipe

LATEST_MS = 4_102_444_800_000
"""2100-01-01. Sessions end after they begin, and the archive has a partition for each month: a clock must leave room for both."""

# KEYS [1] the bot's clock. ARGV [1] where it should stand at least, in ms. Returns where it stands.
_FORWARD = """
local at = tonumber(redis.call('GET', KEYS[1]) or '0')
if tonumber(ARGV[1]) > at then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return tostring(at)
"""


class SandboxClocks:
    """`now_ms` and `forward_ms` of each sandbox bot's clock. One that was never set stands at the time it is first read."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def now_ms(self, bot: str, *, real_ms: int, follows: bool) -> int:
        """Where a bot's clock stands. One that follows its entries begins at zero, so that old records can be played."""
        stands_ms = await self.stands_ms(bot)
        if stands_ms is not None:
            return stands_ms
        return 0 if follows else await self.forward(bot, to_ms=real_ms)

    async def stands_ms(self, bot: str) -> int | None:
        """Where a bot's clock stands; None if nothing has set it."""
        stored = await self._pipe.call("GET", keys.sandbox_clock(bot))
        return None if stored is None else int(stored)

    async def forward(self, bot: str, *, to_ms: int) -> int:
        """Move a clock forward; if it stands later already it stays. Returns where it stands."""
        return int(await self._pipe.call("EVAL", _FORWARD, 1, keys.sandbox_clock(bot), to_ms))


def forward_target_ms(now_ms: int, *, by_ms: int | None, to_ms: int | None) -> int:
    """Where `POST …/clock/advance` moves a clock that stands at `now_ms`.

    Raises `Conflict` for a move backwards, `Invalid` for one beyond `LATEST_MS`.
    """
    target = to_ms if to_ms is not None else now_ms + (by_ms or 0)
    if target > LATEST_MS:
        raise beyond_latest("seconds" if to_ms is None else "to")
    if target < now_ms:
        raise Conflict("a sandbox clock only moves forward", hint="name an instant after the bot's present one")
    return target


def beyond_latest(field: str) -> Invalid:
    """The refusal of a `field` that would move a clock beyond `LATEST_MS`."""
    latest = rfc3339(LATEST_MS)
    fault = Fault(field, f"would move the sandbox clock beyond {latest}", "name an earlier instant")
    return Invalid(f"a sandbox clock goes no further than {latest}", faults=(fault,))
