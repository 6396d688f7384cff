"""API keys from the command line: created, listed and revoked without the API, since the first key must come from somewhere.

It works on Postgres and publishes to Redis at once if it can; else a worker publishes within a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import audit, bots, keys
from app.archive.engine import make_engine
from app.clock import wall_ms
from app.config.change import ConfigWriter
from app.errors import CannotStart
from app.ids import new_id, new_key
from app.live.server import open_redis

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
            await change.record("key.created", key_id, name=name, scopes=list(scopes), bots=covered)
        return key

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

    async def revoke(self, key_id: str) -> bool:
        """Revoke a key; False if it was revoked before or does not exist."""
        async with self._writer.changing(ACTOR) as change:
            revoked = await keys.revoke(change.conn, key_id)
            if revoked:
                await change.record("key.revoked", key_id)
        return revoked


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
