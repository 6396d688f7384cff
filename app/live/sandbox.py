"""The time of sandbox bots, kept in Redis: it moves forward only, when told to or with the `sent_at` of entries."""

from app.domain.instants import DAY_MS, rfc3339
from app.errors import Conflict, Fault, Invalid
from app.live import keys
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe

BEGINNING_MS = 0
"""Where a clock stands that follows entries, and has not met one that says when it was sent."""

_YEAR_MS = 366 * DAY_MS
PAST_MS = 30 * _YEAR_MS
AHEAD_MS = 10 * _YEAR_MS
"""How far from real time a clock may be moved: recorded traffic may be old, but the archive has a partition for each year."""

_FORWARD = LuaScript(read_source("app.live", "forward.lua"))


class SandboxClocks:
    """`now_ms` and `forward_ms` of each sandbox bot's clock. One that was never set stands at the time it is first read."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def now_ms(self, bot: str, *, real_ms: int, follows: bool) -> int:
        """Where a bot's clock stands. One that follows its entries begins at zero, so that old records can be played."""
        stands_ms = await self.stands_ms(bot)
        if stands_ms is not None:
            return stands_ms
        return BEGINNING_MS if follows else await self.forward(bot, to_ms=real_ms)

    async def stands_ms(self, bot: str) -> int | None:
        """Where a bot's clock stands; None if nothing has set it."""
        stored = await self._pipe.call("GET", keys.sandbox_clock(bot))
        return None if stored is None else int(stored)

    async def forward(self, bot: str, *, to_ms: int) -> int:
        """Move a clock forward; if it stands later already it stays. Returns where it stands."""
        return int(await _FORWARD.call(self._pipe, [keys.sandbox_clock(bot)], to_ms))


def forward_target_ms(now_ms: int, *, by_ms: int | None, to_ms: int | None, real_ms: int) -> int:
    """Where `POST …/clock/advance` moves a clock that stands at `now_ms`.

    Raises `Conflict` for a move backwards, `Invalid` for one too far from real time.
    """
    target = to_ms if to_ms is not None else now_ms + (by_ms or 0)
    if target < now_ms:
        raise Conflict("a sandbox clock only moves forward", hint="name an instant after the bot's present one")
    if not _within(target, real_ms=real_ms):
        raise _too_far("seconds" if to_ms is None else "to", real_ms=real_ms)
    return target


def followed_ms(now_ms: int, *, sent_at_ms: int | None, real_ms: int) -> int:
    """Where a clock that follows entries, and stands at `now_ms`, is moved by one that was sent at `sent_at_ms`.

    Raises `Invalid` for an entry that would move it too far from real time, or comes without `sent_at` before all others: at the
    clock's beginning nothing happens, and what it was set to it would not go back from.
    """
    if sent_at_ms is None and now_ms == BEGINNING_MS:
        fault = Fault(
            "sent_at",
            "it is required: this bot's clock follows it, and stands nowhere yet",
            "add it, or set the clock by `clock/advance`",
        )
        raise Invalid("the clock of this bot has not begun", faults=(fault,))
    if sent_at_ms is None or BEGINNING_MS < now_ms >= sent_at_ms:
        return now_ms
    if not _within(sent_at_ms, real_ms=real_ms):
        raise _too_far("sent_at", real_ms=real_ms)
    return sent_at_ms


def _within(at_ms: int, *, real_ms: int) -> bool:
    return real_ms - PAST_MS <= at_ms <= real_ms + AHEAD_MS


def _too_far(field: str, *, real_ms: int) -> Invalid:
    hint = f"from {rfc3339(real_ms - PAST_MS)} to {rfc3339(real_ms + AHEAD_MS)}"
    fault = Fault(field, "would move the sandbox clock too far from real time", hint)
    return Invalid("a sandbox clock stands at most 30 years before and 10 years after real time", faults=(fault,))
