"""Rates: how much of something (entries, bytes, requests) one key or bot may spend a second, over all processes.

A bucket in Redis fills at the rate and holds `BURST_S` seconds of it. A process takes a slice of it at a time and spends that
from memory, so most entries cost no second trip to Redis. Where Redis does not answer soon, slices are given without it, and
counted: a rate protects others from one caller, and must not stop all of them.

`OpenQuota` bounds how many sessions of a bot are open.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from math import ceil

import structlog
from msgspec import Struct, field
from redis.exceptions import RedisError

from app.clock import monotonic_ms
from app.errors import RateLimited, Unavailable
from app.live import keys
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe
from app.metrics import RATE_LIMITED, RATES_UNCHECKED

BURST_S = 10
_SLICE_S = 0.1
_PAUSE_MS = 100.0  # after a bucket was found empty
_LONGEST_WAIT_S = 0.2
_UNCHECKED_MS = 1_000.0  # after Redis did not answer
_SPEND = LuaScript(read_source("app.live", "spend.lua"))
log = structlog.get_logger(__name__)


class Spent(Struct, frozen=True):
    """How much of what was asked for may be done. `left`: what may be spent at once from now on, as far as this process knows."""

    allowed: int
    left: int
    per_s: int

    @property
    def full_after_s(self) -> int:
        """Until all may be spent again, in whole seconds."""
        return ceil(max(0, self.per_s * BURST_S - self.left) / self.per_s)


class _Slice(Struct, eq=False):
    """Tokens that a process has taken out of a bucket and not spent yet."""

    per_s: int
    tokens: int = 0
    left: int = 0  # in the bucket, when it was asked last
    empty_until_ms: float = 0.0  # on the monotonic clock: until then Redis is not asked again
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Slices(Struct, frozen=True):
    """Slices of the same kind, which one request spends together as long as none of them has to be filled."""

    held: list[_Slice]

    def have(self, amount: int) -> bool:
        """Whether each holds so much."""
        for held in self.held:  # noqa: SIM110 - a generator costs three times as much, on the path of every entry
            if held.tokens < amount:
                return False
        return True

    def spend(self, amount: int) -> Spent:
        """Spend what each holds. The result is that of the one with the least left."""
        left = per_s = 0
        for held in self.held:
            held.tokens -= amount
            rest = held.left + held.tokens
            if not per_s or rest < left:
                left, per_s = rest, held.per_s
        return Spent(amount, left, per_s)


class Rates:
    """The rates of one process."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._slices: dict[str, _Slice] = {}
        self._unchecked_until_ms = 0.0  # on the monotonic clock: until then slices are given without Redis

    async def spend(self, name: str, *, per_s: int, wanted: int) -> Spent:
        """Spend up to `wanted` of the rate `name`; `per_s` 0 is no limit."""
        if not per_s:
            return Spent(wanted, 0, 0)
        held = self._slice(name, per_s)
        if held.tokens < wanted:
            await self._fill(name, held, wanted=wanted)
        allowed = min(wanted, held.tokens)
        held.tokens -= allowed
        return Spent(allowed, held.left + held.tokens, per_s)

    def slices_of(self, rates: Mapping[str, int]) -> Slices:
        """The slices of several rates, by name with the tokens a second, to be spent together; none of one without limit."""
        return Slices([self._slice(name, per_s) for name, per_s in rates.items() if per_s])

    def is_spent(self, name: str) -> bool:
        """Whether nothing of a rate is left, as far as is known without asking Redis."""
        held = self._slices.get(name)
        return held is not None and not held.tokens and monotonic_ms() < held.empty_until_ms

    def _slice(self, name: str, per_s: int) -> _Slice:
        """The slice of a rate; a new one if the rate was changed, so that a lower one holds at once."""
        held = self._slices.get(name)
        if held is None or held.per_s != per_s:
            held = self._slices[name] = _Slice(per_s)
        return held

    async def _fill(self, name: str, held: _Slice, *, wanted: int) -> None:
        async with held.asking:
            if held.tokens >= wanted or monotonic_ms() < held.empty_until_ms:
                return
            asked = max(wanted - held.tokens, ceil(held.per_s * _SLICE_S))
            taken, held.left = await self._take(name, per_s=held.per_s, asked=asked)
            held.tokens += taken
            if taken < asked:
                held.empty_until_ms = monotonic_ms() + _PAUSE_MS

    async def _take(self, name: str, *, per_s: int, asked: int) -> tuple[int, int]:
        """Tokens taken out of the bucket, and those left in it."""
        if monotonic_ms() >= self._unchecked_until_ms:
            try:
                async with asyncio.timeout(_LONGEST_WAIT_S):
                    taken, left = await _SPEND.call(self._pipe, [keys.rate(name)], per_s, per_s * BURST_S, asked)
                return int(taken), int(left)
            except (RedisError, Unavailable, TimeoutError) as error:
                self._unchecked_until_ms = monotonic_ms() + _UNCHECKED_MS
                log.warning("rate not checked, entries are taken without it", rate=name, error=repr(error))
        RATES_UNCHECKED.inc()
        return asked, 0


_RECOUNT_MS = 1_000.0  # while a bot has no room
_ROOM_SHARE = 8  # so that eight processes that open sessions together exceed the quota by little


class OpenSessions(Struct, eq=False):
    """The sessions of a bot that were open at an instant, and those that this process has opened since."""

    open: int
    at_ms: float
    opened: int = 0


class OpenQuota:
    """How many sessions of a bot may be open, over all processes.

    A process counts them in Redis, and again when it has opened an eighth of the room that there was. So most entries cost no
    second trip, and a bot exceeds its quota by no more than what several processes open within one such part.
    """

    def __init__(self, count: Callable[[str], Awaitable[int]], *, limit_of: Callable[[str], int]) -> None:
        self._count = count
        self._limit_of = limit_of
        self._known: dict[str, OpenSessions] = {}

    async def room_of(self, bot: str) -> int:
        """How many sessions the bot may open now. `limit_of` a bot is 0 where there is no limit."""
        limit = self._limit_of(bot)
        if not limit:
            return sys.maxsize
        known = self._known.get(bot)
        room = 0 if known is None else limit - known.open
        if known is None or (known.opened * _ROOM_SHARE >= room and (room > 0 or monotonic_ms() >= known.at_ms + _RECOUNT_MS)):
            known = self._known[bot] = OpenSessions(await self._count(bot), monotonic_ms())
        return limit - known.open - known.opened

    def count_opened(self, bot: str) -> None:
        """Count a session that this process has opened."""
        known = self._known.get(bot)
        if known is not None:
            known.opened += 1


def over_quota() -> RateLimited:
    """The refusal of an entry that would open a session too many."""
    RATE_LIMITED.labels("open_sessions").inc()
    return RateLimited(
        "the bot has as many sessions open as it may",
        hint="let sessions close, or have `max_open_sessions` raised",
        retry_after_s=60,
    )
