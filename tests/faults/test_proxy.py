"""The proxy breaks connections as described: a request that is cut after execution was executed, a dead one is dropped."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.embedded import Servers
from tests.faults.proxy import Mode, Proxy, proxy


@pytest.fixture
async def wire(servers: Servers, redis_url: str) -> AsyncIterator[Proxy]:
    assert servers.redis is not None
    assert redis_url
    async with proxy(Path(servers.redis.socket_path)) as made:
        yield made


@pytest.fixture
async def client(wire: Proxy) -> AsyncIterator[Redis]:
    redis = Redis(host="127.0.0.1", port=wire.port, socket_timeout=0.3, retry=Retry(NoBackoff(), 0))
    yield redis
    await redis.aclose()


@pytest.fixture
async def direct(redis_url: str) -> AsyncIterator[Redis]:
    redis = Redis.from_url(redis_url)
    yield redis
    await redis.aclose()


async def test_what_is_cut_after_execution_was_executed(wire: Proxy, client: Redis, direct: Redis) -> None:
    """The server executed it, the client gets no reply, and the next connection works."""
    await client.set("other", 1)
    wire.cut_after(b"counter")

    with pytest.raises(RedisConnectionError):
        await client.incr("counter")

    assert await direct.get("counter") == b"1"
    assert wire.cuts == 1
    assert await client.get("counter") == b"1"


async def test_a_mute_wire_executes_and_says_nothing(wire: Proxy, client: Redis, direct: Redis) -> None:
    """As if the reply had been lost on the way."""
    await client.set("other", 1)
    wire.mode = Mode.MUTE

    with pytest.raises(RedisTimeoutError):
        await client.incr("counter")

    assert await direct.get("counter") == b"1"


async def test_a_dead_wire_reaches_nobody(wire: Proxy, client: Redis, direct: Redis) -> None:
    """Half-open: the client's writes succeed, and go nowhere."""
    await client.set("other", 1)
    wire.mode = Mode.DEAD

    with pytest.raises(RedisTimeoutError):
        await client.incr("counter")

    assert await direct.get("counter") is None


async def test_a_slow_wire_is_slow(wire: Proxy, client: Redis) -> None:
    """Replies come later, and come."""
    await client.set("other", 1)
    wire.latency_s = 0.2
    loop = asyncio.get_running_loop()
    began_s = loop.time()

    assert await client.get("other") == b"1"
    assert loop.time() - began_s >= 0.2


async def test_a_wire_that_refuses_sends_away(wire: Proxy, client: Redis) -> None:
    """Until the mode is `PASS` again."""
    wire.mode = Mode.REFUSE
    with pytest.raises(RedisConnectionError):
        await client.ping()

    wire.mode = Mode.PASS
    assert await client.set("other", 1)
