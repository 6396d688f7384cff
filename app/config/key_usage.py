"""When each key was used last: noted in memory, sent to Redis every few seconds, and saved in Postgres by the worker.

A request costs one member of a set. An instant is exact to a minute, and a process that is killed loses its last seconds of it.
"""

import asyncio
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.keys import save_uses
from app.clock import Clock
from app.config.follower import ConfigReplica
from app.live import keys

_EVERY_S = 5
_log = structlog.get_logger(__name__)


class KeyUsage:
    """The uses that one process has seen; between `start` and `stop` a task sends them."""

    def __init__(self, config: ConfigReplica, redis: Redis, clock: Clock) -> None:
        # redis-py's types name every form that a reply may have; here it is RESP2, undecoded.
        self._redis: Any = redis
        self._config = config
        self._clock = clock
        self._sender: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._sender = asyncio.create_task(self._send(), name="key usage")

    async def stop(self) -> None:
        """Stop, and send the rest."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            await self.run_once()

    async def run_once(self) -> None:
        """Send the uses since the last time. While Redis is down they are kept for the next time."""
        used = self._config.take_used_keys()
        if not used:
            return
        try:
            await self._redis.hset(keys.KEYS_USED, mapping=dict.fromkeys(used, self._clock.now_ms()))
        except (RedisError, OSError) as error:
            self._config.used_keys.update(used)
            _log.debug("uses of keys not sent, Redis is unreachable", error=str(error))

    async def _send(self) -> None:
        while self._sender is not None:  # a cancellation can end the call to Redis alone
            await asyncio.sleep(_EVERY_S)
            await self.run_once()


async def save_key_uses(engine: AsyncEngine, redis: Redis) -> None:
    """Save what all processes sent: at most one write a minute for each key, and none for a key that was not used."""
    sent: Any = await redis.hgetall(keys.KEYS_USED)
    async with engine.begin() as conn:
        await save_uses(conn, {key_id.decode(): int(at_ms) for key_id, at_ms in sent.items()})
