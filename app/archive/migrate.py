"""Brings a database to the schema of this version, whoever starts first.

The steps are Alembic's, in `migrations/`, which lies beside `app/` in a checkout and in an installation.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
_LOCK = 0x61646A6F75726E  # "adjourn": whoever holds it migrates, the others wait and then find nothing to do


async def upgrade(database_url: str) -> None:
    """Run what is missing, one starter at a time."""
    engine = create_async_engine(database_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
            # Alembic's environment runs an event loop of its own. The lock falls with the connection.
            await asyncio.to_thread(command.upgrade, _config(database_url), "head")
    finally:
        await engine.dispose()


def _config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    # The option's text is a format string to its reader, so a percent sign in a password is doubled.
    config.set_main_option("sqlalchemy.url", database_url.replace("%", "%%"))
    return config
