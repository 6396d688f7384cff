"""The transaction of a change of configuration: a lock, the change, its audit entry; then publish, and wait until it is known.

If Redis is unreachable the change stands all the same, and a worker publishes it within a second of Redis's return.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import audit
from app.config.follower import ConfigReplica
from app.config.publish import publish
from app.failures import failure_of

# The triggers that stamp revisions take the same lock (migration 0002).
CONFIG_LOCK = 0x61646A_03
KNOWN_TIMEOUT_S = 2.0
_log = structlog.get_logger(__name__)


class ConfigChange:
    """A change under way: the connection of its transaction, and its entries in the audit log."""

    def __init__(self, conn: AsyncConnection, actor: audit.Actor) -> None:
        self.conn = conn
        self._actor = actor

    async def record(self, action: str, target: str, *, bot: str | None = None, **detail: object) -> None:
        """Write an audit entry, see `app.archive.audit.record`."""
        await audit.record(self.conn, self._actor, action, target, bot=bot, **detail)


class ConfigWriter:
    """Makes changes. Without `redis` a worker publishes them; without `replica` no process's knowledge is waited for."""

    def __init__(self, engine: AsyncEngine, *, redis: Redis | None, replica: ConfigReplica | None = None) -> None:
        self._engine = engine
        self._redis = redis
        self._replica = replica

    @asynccontextmanager
    async def changing(self, actor: audit.Actor) -> AsyncIterator[ConfigChange]:
        """A transaction that no other change of configuration overlaps: a version it reads is the latest when it writes.

        Commits at the end, publishes, and waits until this process knows the change.
        """
        async with self._engine.begin() as conn:
            await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CONFIG_LOCK})
            yield ConfigChange(conn, actor)
        # A crash here leaves the change unpublished: a worker publishes it within a second.
        await self._publish()

    async def _publish(self) -> None:
        if self._redis is None:
            return
        try:
            mark = await publish(self._engine, self._redis)
        except Exception as error:  # noqa: BLE001 - the change is committed: a caller must not take it for failed
            warn = _log.exception if failure_of(error) == "bug" else _log.warning
            warn("configuration saved but not published, a worker will publish it", error=str(error))
            return
        if self._replica is not None and not await self._replica.caught_up(mark, timeout_s=KNOWN_TIMEOUT_S):
            _log.warning("configuration published but not yet known to this process", revision=mark.revision)
