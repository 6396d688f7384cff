"""API keys from the command line: made, listed, revoked without the API, since the first key must come from somewhere.

Works on Postgres, and tells Redis at once if it can; else a worker does within a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import audit, bots, keys
from app.archive.engine import make_engine
from app.clock import wall_ms
from app.config.change import writing_config
from app.config.publish import publish
from app.errors import AdjournError, CannotStart
from app.ids import new_id, new_key
from app.live.server import open_redis

SCOPES = ("ingest", "read", "admin")
ACTOR = audit.Actor("command line")
_PAGE = 1000
_REDIS_TIMEOUT_S = 2.0
log = structlog.get_logger(__name__)


class Keyring:
    """The keys of one database."""

    def __init__(self, engine: AsyncEngine, *, redis_url: str | None) -> None:
        self._engine = engine
        self._redis_url = redis_url

    async def create(self, name: str, *, scopes: Sequence[str] = SCOPES, for_bots: Sequence[str] = ()) -> str:
        """Make a key, for all bots if none is named, and give it: it is kept nowhere. Raises `CannotStart` for an unknown bot."""
        key, key_id = new_key(), new_id(wall_ms())
        async with writing_config(self._engine) as conn:
            for bot in for_bots:
                await _check_bot(conn, bot)
            covered = list(for_bots) or None
            await keys.create(conn, key_id, key, name=name, scopes=list(scopes), bots=covered)
            await audit.record(conn, ACTOR, "key.created", key_id, name=name, scopes=list(scopes), bots=covered)
        await self._publish()
        return key

    async def create_first(self) -> str | None:
        """Make a key for everything if nobody holds one that can make others."""
        async with self._engine.connect() as conn:
            if await keys.any_valid(conn, "admin"):
                return None
        return await self.create("first")

    async def rows(self) -> list[Row[tuple[object, ...]]]:
        """Every key ever made, the oldest first."""
        found: list[Row[tuple[object, ...]]] = []
        async with self._engine.connect() as conn:
            while page := await keys.page(conn, within=None, after=str(found[-1].id) if found else None, limit=_PAGE):
                found.extend(page)
        return found

    async def revoke(self, key_id: str) -> bool:
        """Take a key's power; say no if it had none or does not exist."""
        async with writing_config(self._engine) as conn:
            revoked = await keys.revoke(conn, key_id)
            if revoked:
                await audit.record(conn, ACTOR, "key.revoked", key_id)
        await self._publish()
        return revoked

    async def _publish(self) -> None:
        if self._redis_url is None:
            return
        try:
            async with open_redis(self._redis_url, timeout_s=_REDIS_TIMEOUT_S) as redis:
                await publish(self._engine, redis)
        except (RedisError, OSError, AdjournError) as error:
            log.warning("saved, but Redis was not told: a worker will", error=str(error))


@asynccontextmanager
async def open_keyring(*, database_url: str, redis_url: str | None) -> AsyncIterator[Keyring]:
    engine = make_engine(database_url, pool_size=1, name="adjourn-keys")
    try:
        yield Keyring(engine, redis_url=redis_url)
    finally:
        await engine.dispose()


async def _check_bot(conn: AsyncConnection, bot: str) -> None:
    if await bots.find(conn, bot) is None:
        msg = f"there is no bot {bot!r}"
        raise CannotStart(msg)
