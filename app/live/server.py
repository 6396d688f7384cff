"""The live Redis server: opening a client, and checking that the server fits this deployment.

It refuses a server that was started with another number of shards, since the shard is part of every key.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from typing_extensions import override

from app.clock import Clock, monotonic_ms
from app.errors import CannotStart
from app.live import keys
from app.live.pipe import Pipe
from app.settings import SENTINEL_SCHEMES

_SENTINEL_PORT = 26379
FSYNC = ("no", "everysec", "always")
"""Values of `appendfsync`, the weakest durability first."""


class ConfigurationError(CannotStart):
    """The settings do not fit the servers; the message says how."""


def open_redis(url: str, *, timeout_s: float) -> Redis:
    """A client that waits at most `timeout_s` to connect and for each reply; the caller closes it."""
    if urlsplit(url).scheme in SENTINEL_SCHEMES:
        redis = _of_service(url, timeout_s=timeout_s)
    else:
        redis = Redis.from_url(url, protocol=2, socket_timeout=timeout_s, socket_connect_timeout=timeout_s)
    pool = redis.connection_pool
    pool.connection_class = _on_uvloop(pool.connection_class)
    return redis


def _of_service(url: str, *, timeout_s: float) -> Redis:
    """A client of the primary that the sentinels name: each new connection asks them, so it follows a failover.

    User and password are those of the primary; `sentinel_username` and `sentinel_password` in the query those of the sentinels.
    """
    parts = urlsplit(url)
    service, _, database = parts.path.strip("/").partition("/")
    addresses = [urlsplit(f"//{address}") for address in parts.netloc.rpartition("@")[2].split(",")]
    query = dict(parse_qsl(parts.query))
    # A sentinel that does not answer must leave time to ask the others: redis-py would try it again for seconds.
    asking: dict[str, Any] = {
        "socket_timeout": timeout_s / 4,
        "socket_connect_timeout": timeout_s / 4,
        "retry": Retry(NoBackoff(), 0),
    }
    asking |= {name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query}
    sentinel = Sentinel(
        [(address.hostname or "", address.port or _SENTINEL_PORT) for address in addresses],
        sentinel_kwargs=asking,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        db=int(database or 0),
        ssl=parts.scheme.startswith("rediss"),
    )
    redis: Redis = sentinel.master_for(service, redis_class=_OfService)
    return redis


class _OfService(Redis):
    """A client that closes the connections to the sentinels, too."""

    @override
    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        pool: Any = self.connection_pool
        await super().aclose(close_connection_pool)
        for sentinel in pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _on_uvloop(kind: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same kind of connection, which reports a closed socket with the exception that redis-py expects.

    uvloop raises RuntimeError for a write to a socket whose end it has noticed before its reader has.
    """

    class OnUvloop(kind):  # type: ignore[misc, valid-type]
        async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's own
            try:
                await super().send_packed_command(command, check_health)
            except RuntimeError as error:
                raise RedisConnectionError("the connection was closed") from error

    return OnUvloop


async def check_shards(pipe: Pipe, shards: int) -> None:
    """Fix the number of shards at the first start. Raises `ConfigurationError` if this Redis was started with another."""
    await pipe.call("SET", keys.SHARDS, shards, "NX")
    stored = int(await pipe.call("GET", keys.SHARDS))
    if stored != shards:
        raise ConfigurationError(f"this Redis was started with SHARDS={stored}, and now SHARDS={shards}: set it back")


async def synchronize(clock: Clock, pipe: Pipe) -> None:
    """Set `clock` by Redis: the machine's own may be far off, and its monotonic one stands still while it is suspended."""
    sent_ms = monotonic_ms()
    seconds, micros = await pipe.call("TIME")
    clock.observe(int(seconds) * 1000 + int(micros) / 1000, sent_ms=sent_ms, received_ms=monotonic_ms())


async def durability_warnings(pipe: Pipe, *, appendfsync: str) -> list[str]:
    """Each setting of Redis that is weaker than this deployment expects, as a sentence; for the log at a start and `/readyz`.

    Empty, too, where Redis does not let its settings be read.
    """
    try:
        found = [await pipe.call("CONFIG", "GET", name) for name in ("maxmemory-policy", "appendonly", "appendfsync")]
    except ResponseError:
        return []
    return warnings_of({name.decode(): value.decode() for name, value in filter(None, found)}, appendfsync=appendfsync)


def warnings_of(settings: Mapping[str, str], *, appendfsync: str) -> list[str]:
    """The warnings about settings that were read. A setting that is missing gives none."""
    warnings = []
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        warnings.append(f"maxmemory-policy is {policy}: open sessions are evicted when memory is short; set it to noeviction")
    if settings.get("appendonly", "yes") != "yes":
        warnings.append("appendonly is off: all open sessions are lost with the process; set it to yes")
    elif FSYNC.index(settings.get("appendfsync", "always")) < FSYNC.index(appendfsync):
        warnings.append(f"appendfsync is {settings['appendfsync']}, and {appendfsync} is expected (APPENDFSYNC): less is kept")
    return warnings
