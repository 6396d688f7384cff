"""The transaction of a change of configuration: a lock, the change, its audit entry; then publish, and wait until it is known.

If Redis is unreachable the change stands all the same, and a worker publishes it within a second of Redis's return. The keyring
changes API keys from the command line, without the API, since no request can come before the first key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from redis.asyncio import Redis
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import audit, bots, keys
from app.archive.engine import Lock, make_engine, take_lock
from app.clock import wall_ms
from app.config.follower import ConfigReplica
from app.config.publish import publish
from app.errors import CannotStart
from app.failures import failure_of
from app.ids import new_id, new_key
from app.live.server import open_redis

KNOWN_TIMEOUT_S = 2.0
_log = structlog.get_logger(__name__)


class ConfigChange:
    """A change under way: the connection of its transaction, and its entries in the audit log."""

    def __init__(self, conn: AsyncConnection, actor: audit.Actor) -> None:
        self.conn = conn
        self._actor = actor

    async def record(
        self,
        action: str,
        target: str,
        *,
        bot: str | None = None,
        before: audit.AuditedFields | None = None,
        after: audit.AuditedFields | None = None,
        **detail: object,
    ) -> None:
        """Write an audit entry, see `app.archive.audit.record`."""
        await audit.record(self.conn, self._actor, action, target, bot=bot, before=before, after=after, **detail)


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
            await take_lock(conn, Lock.CONFIG)
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


SCOPES = ("ingest", "read", "admin")
ACTOR = audit.Actor("command line")
_PAGE = 1000
_REDIS_TIMEOUT_S = 2.0


class Keyring:
    """The keys of one database."""

    def __init__(self, engine: AsyncEngine, writer: ConfigWriter) -> None:
        self._engine = engine
        self._writer = writer

    async def create(self, name: str, *, scopes: Sequence[str] = SCOPES, for_bots: Sequence[str] = ()) -> str:
        """Create a key, for all bots if none is named, and return it: it is stored as a digest only.

        Raises `CannotStart` for an unknown bot.
        """
        key, key_id = new_key(), new_id(wall_ms())
        async with self._writer.changing(ACTOR) as change:
            for bot in for_bots:
                await _check_bot(change.conn, bot)
            covered = list(for_bots) or None
            await keys.create(change.conn, key_id, key, name=name, scopes=list(scopes), bots=covered)
            await change.record("key.created", key_id, after={"name": name, "scopes": list(scopes), "bots": covered})
        return key

    async def ensure(self, key: str) -> bool:
        """Save this key with all scopes unless it was saved before; False if it was. One that was revoked stays so."""
        async with self._writer.changing(ACTOR) as change:
            if await keys.exists(change.conn, key):
                return False
            key_id = new_id(wall_ms())
            await keys.create(change.conn, key_id, key, name="environment", scopes=list(SCOPES), bots=None)
            await change.record("key.created", key_id, after={"name": "environment", "scopes": list(SCOPES), "bots": None})
        return True

    async def create_first(self) -> str | None:
        """Create a key with all scopes if there is none that can create others."""
        async with self._engine.connect() as conn:
            if await keys.any_valid(conn, "admin"):
                return None
        return await self.create("first")

    async def rows(self) -> list[Row[tuple[object, ...]]]:
        """Every key ever created, the oldest first."""
        found: list[Row[tuple[object, ...]]] = []
        async with self._engine.connect() as conn:
            while page := await keys.page(conn, within=None, after=str(found[-1].id) if found else None, limit=_PAGE):
                found.extend(page)
        return found

    async def revoke(self, key_id: str, *, created: bool = False) -> bool:
        """Revoke a key, and with `created` those that it created; False if none of them was valid."""
        async with self._writer.changing(ACTOR) as change:
            more = await keys.created_by(change.conn, key_id) if created else []
            revoked = [each for each in [key_id, *(str(row.id) for row in more)] if await keys.revoke(change.conn, each)]
            for each in revoked:
                await change.record("key.revoked", each)
        return bool(revoked)


@asynccontextmanager
async def open_keyring(*, database_url: str, redis_url: str | None) -> AsyncIterator[Keyring]:
    """The keyring of a database; without `redis_url` a worker publishes its changes."""
    async with AsyncExitStack() as stack:
        engine = make_engine(database_url, pool_size=1, name="adjourn-keys")
        stack.push_async_callback(engine.dispose)
        redis = None if redis_url is None else await stack.enter_async_context(open_redis(redis_url, timeout_s=_REDIS_TIMEOUT_S))
        yield Keyring(engine, ConfigWriter(engine, redis=redis))


async def _check_bot(conn: AsyncConnection, bot: str) -> None:
    if await bots.find(conn, bot) is None:
        msg = f"there is no bot {bot!r}"
        raise CannotStart(msg)
