"""Runs the migrations on a connection that `app.archive.engine` gives, or on `DATABASE_URL` for Alembic's own command.

Alembic's command is for writing a migration (`alembic revision --autogenerate`); the product upgrades
through `app.archive.engine`.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from app.archive.engine import make_single_use_engine
from app.archive.partitions import is_partition
from app.archive.tables import metadata
from app.settings import Settings


def include_name(name: str | None, kind: str, _parents: object) -> bool:
    """Partitions come and go with the months: they are no part of the schema that Alembic compares."""
    return not (kind == "table" and name is not None and is_partition(name))


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, include_name=include_name, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_by_url() -> None:
    database_url = Settings.load().database_url
    if database_url is None:
        msg = "DATABASE_URL is not set"
        raise SystemExit(msg)
    engine = make_single_use_engine(database_url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is None:
    asyncio.run(run_by_url())
else:
    run(given)
