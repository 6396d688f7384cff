"""The time of sandbox bots, stored in Redis: it only moves forward, by an API call or with the `sent_at` of entries.

It refuses a move backwards, and one so far from real time that the archive would need a partition for each year in between.
"""

from typing import Literal

from app.clock import Clock
from app.domain.errors import Fault
from app.domain.instants import DAY_MS, rfc3339
from app.errors import Conflict, Invalid
from app.live import keys
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe

ClockMode = Literal["manual", "sent_at"]
"""How a sandbox bot's clock moves: by `POST …/clock/advance` alone, or also with the `sent_at` of its entries."""

BEGINNING_MS = 0
"""The instant of a clock that follows entries, before the first entry that has `sent_at`."""

_YEAR_MS = 366 * DAY_MS
PAST_MS = 30 * _YEAR_MS
AHEAD_MS = 10 * _YEAR_MS
"""How far from real time a clock may be moved. Recorded traffic may be old, but the archive has a partition for each month."""

_FORWARD = LuaScript(read_source("app.live", "forward.lua"))


class SandboxClocks:
    """The clocks of all sandbox bots."""

    def __init__(self, pipe: Pipe, clock: Clock) -> None:
        self._pipe = pipe
        self._clock = clock

    async def command_ms(self, bot: str, mode: ClockMode | None) -> int | None:
        """The instant of a command to a bot in the bot's own time; None for a bot that has no clock of its own."""
        return None if mode is None else await self.now_ms(bot, mode)

    async def now_ms(self, bot: str, mode: ClockMode) -> int:
        """The instant of a bot's clock. A manual one that was never set starts at real time, when it is first read.

        One that follows its entries starts at zero, so that old records can be played.
        """
        stored_ms = await self.stored_ms(bot)
        if stored_ms is not None:
            return stored_ms
        return BEGINNING_MS if mode == "sent_at" else await self.forward(bot, to_ms=self._clock.now_ms())

    async def stored_ms(self, bot: str) -> int | None:
        """The instant of a bot's clock; None if it was never set."""
        stored = await self._pipe.call("GET", keys.sandbox_clock(bot))
        return None if stored is None else int(stored)

    async def forward(self, bot: str, *, to_ms: int) -> int:
        """Move a clock forward, or leave it if it is later already. Returns its instant."""
        return int(await _FORWARD.call(self._pipe, [keys.sandbox_clock(bot)], to_ms))


def forward_target_ms(now_ms: int, *, by_ms: int | None, to_ms: int | None, real_ms: int) -> int:
    """The instant to which `POST …/clock/advance` moves a clock that is at `now_ms`.

    Raises `Conflict` for a move backwards, `Invalid` for one too far from real time.
    """
    target = to_ms if to_ms is not None else now_ms + (by_ms or 0)
    if target < now_ms:
        raise Conflict("a sandbox clock only moves forward", hint="name an instant after the bot's present one")
    if not _within(target, real_ms=real_ms):
        raise _too_far("seconds" if to_ms is None else "to", real_ms=real_ms)
    return target


def followed_ms(now_ms: int, *, sent_at_ms: int | None, real_ms: int) -> int:
    """The instant to which an entry, sent at `sent_at_ms`, moves a clock that follows entries and is at `now_ms`.

    Raises `Invalid` for an entry that would move it too far from real time. Raises it, too, for one without `sent_at` before any
    other entry: the clock has not started, and could not go back from any instant chosen for it.
    """
    if sent_at_ms is None and now_ms == BEGINNING_MS:
        fault = Fault(
            "sent_at",
            "it is required: this bot's clock follows it, and has not started",
            "add it, or set the clock by `clock/advance`",
        )
        raise Invalid("the clock of this bot has not started", faults=(fault,))
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
    return Invalid("a sandbox clock is at most 30 years before and 10 years after real time", faults=(fault,))
