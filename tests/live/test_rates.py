"""Rates hold over all processes, come back with time, and stop nobody where Redis does not answer."""

import asyncio

from redis.asyncio import Redis

from app.live import keys
from app.live.pipe import Pipe
from app.live.rates import BURST_S, Rates

NAME = "entries:key:one"
PER_S = 20
BURST = PER_S * BURST_S


async def spend(rates: Rates, wanted: int, *, name: str = NAME) -> int:
    return (await rates.spend(name, per_s=PER_S, wanted=wanted)).allowed


async def test_ten_seconds_worth_may_be_spent_at_once_by_all_processes_together(pipe: Pipe) -> None:
    """Two processes share the bucket of a key; another key's is untouched."""
    one, other = Rates(pipe), Rates(pipe)

    assert await spend(one, BURST - 50) == BURST - 50
    assert 50 <= await spend(other, 100) <= 52  # some milliseconds' worth more
    assert await spend(one, 10) <= 2
    assert one.is_spent(NAME)
    assert await spend(one, 10, name="entries:key:other") == 10
    assert not one.is_spent("entries:key:other")


async def test_what_was_spent_comes_back_with_time(pipe: Pipe, redis: Redis) -> None:
    """An idle second later, a second's worth."""
    rates = Rates(pipe)
    await spend(rates, BURST)
    stored = await redis.hgetall(keys.rate(NAME))
    await redis.hset(keys.rate(NAME), "at", int(stored[b"at"]) - 1_000)

    assert PER_S <= await spend(Rates(pipe), BURST) <= PER_S + 2


async def test_most_spending_asks_redis_for_nothing(pipe: Pipe, redis: Redis) -> None:
    """A slice of a tenth of a second is taken at once."""
    rates = Rates(pipe)
    before = (await redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"]
    for _ in range(500):
        assert (await rates.spend(NAME, per_s=1_000, wanted=1)).allowed == 1
    after = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]

    assert after - before <= 6


async def test_a_rate_that_cannot_be_checked_stops_nobody(pipe: Pipe, redis: Redis) -> None:
    """Here its key is of another type; Redis is not asked again for a second."""
    await redis.set(keys.rate(NAME), "no bucket")
    rates = Rates(pipe)

    assert [await spend(rates, BURST) for _ in range(3)] == [BURST] * 3


async def test_requests_that_come_together_spend_one_bucket_once(pipe: Pipe) -> None:
    """However many wait for the same slice."""
    rates = Rates(pipe)

    allowed = await asyncio.gather(*[spend(rates, 30) for _ in range(20)])

    assert BURST <= sum(allowed) <= BURST + 5


async def test_zero_is_no_limit(pipe: Pipe) -> None:
    """And leaves no key behind."""
    assert (await Rates(pipe).spend(NAME, per_s=0, wanted=10**9)).allowed == 10**9
