"""Makes the client of the live Redis."""

from collections.abc import Iterable

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError


def open_redis(url: str, *, timeout_s: float) -> Redis:
    """A client that waits that long at most, to connect and for a reply; close it at the end."""
    redis = Redis.from_url(url, protocol=2, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    pool = redis.connection_pool
    pool.connection_class = _on_uvloop(pool.connection_class)
    return redis


def _on_uvloop(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same kind of connection, which tells of a socket that was closed as redis-py expects it.

    uvloop raises RuntimeError for a write to a socket whose end it has noticed before its reader has.
    """

    class OnUvloop(kind):  # type: ignore[misc, valid-type]
        async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's own
            try:
                await super().send_packed_command(command, check_health)
            except RuntimeError as error:
                raise RedisConnectionError("the connection was closed") from error

    return OnUvloop
