"""The client of Redis on a socket that is closed as it is written to."""

import asyncio

import pytest
import uvloop
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from app.live.server import open_redis


def test_a_closed_socket_is_reported_as_a_lost_connection(redis_url: str) -> None:
    """With uvloop, which the product runs on, and which has an error of its own for it."""

    async def write_to_a_closed_socket() -> None:
        redis = open_redis(redis_url, timeout_s=1)
        connection: AbstractConnection = redis.connection_pool.make_connection()
        await connection.connect()
        writer = connection._writer
        assert writer is not None
        writer.transport.abort()
        await asyncio.sleep(0)

        with pytest.raises(RedisConnectionError, match="closed"):
            await connection.send_command("PING", check_health=False)

        await redis.aclose()

    uvloop.run(write_to_a_closed_socket())
