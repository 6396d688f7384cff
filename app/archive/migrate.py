"""Brings the schema up to date, and says whether it is.

All pending migrations run in one transaction under an advisory lock: processes that start at once wait for the first, then
find nothing to do, and a crash half-way leaves the schema as it was.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.engine import make_single_use_engine

# Beside `app/` in a checkout and in an installation alike.
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
MIGRATION_LOCK = 0x61646A_01


def upgrade(database_url: str) -> None:
    """Bring the schema to its newest version; blocks, and may be called where an event loop runs.

    Raises what SQLAlchemy raises if the server cannot be reached or a migration fails.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, upgrade_async(database_url)).result()


async def upgrade_async(database_url: str) -> None:
    """`upgrade` within an event loop."""
    engine = make_single_use_engine(database_url)
    try:
        async with engine.begin() as conn:
            await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            await conn.run_sync(_upgrade)
    finally:
        await engine.dispose()


async def head_matches(conn: AsyncConnection) -> bool:
    """Whether the schema is exactly the one that this code was written for."""
    return await conn.run_sync(_current_version) == newest_version()


@cache
def newest_version() -> str | None:
    return ScriptDirectory.from_config(config()).get_current_head()


def config() -> Config:
    """Alembic's configuration, without a file."""
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    made.set_main_option("path_separator", "os")
    return made


def _upgrade(conn: Connection) -> None:
    made = config()
    made.attributes["connection"] = conn
    command.upgrade(made, "head")


def _current_version(conn: Connection) -> str | None:
    return MigrationContext.configure(conn).get_current_revision()
