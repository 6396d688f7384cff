"""The connections that tests of `app.live` share: a client of Redis, and a pipe over one."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from app.live.pipe import Pipe


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, protocol=2)
    yield client
    await client.aclose()


@pytest.fixture
async def pipe(redis: Redis) -> AsyncIterator[Pipe]:
    opened = Pipe(redis, timeout_s=5)
    yield opened
    await opened.stop()
