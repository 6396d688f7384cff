"""Who writes configuration takes turns, so that a version that was read is still the latest when the next one is saved."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

# The triggers that stamp revisions take the same lock (migration 0002).
CONFIG_LOCK = 0x61646A_03


@asynccontextmanager
async def writing_config(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction that nobody else's change of configuration overlaps; committed at the end."""
    async with engine.begin() as conn:
        await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CONFIG_LOCK})
        yield conn
