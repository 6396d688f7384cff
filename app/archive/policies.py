"""Rows of policies: every version is kept, and the latest applies."""

from datetime import datetime
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import policies


async def add(
    conn: AsyncConnection, bot: str, *, version: int, policy: dict[str, Any], effective_at: datetime, key_id: str | None
) -> Row[Any]:
    """Save a version, as the admin wrote it. Writers of configuration hold one lock, so no other adds the same version."""
    values = {"bot_id": bot, "version": version, "policy": policy, "effective_at": effective_at, "changed_by": key_id}
    row: Row[Any] = (await conn.execute(insert(policies).values(values).returning(policies))).one()
    return row


async def latest(conn: AsyncConnection, bot: str) -> Row[Any] | None:
    versions = await versions_of(conn, bot, before=None, limit=1)
    return versions[0] if versions else None


async def version_of(conn: AsyncConnection, bot: str, version: int) -> Row[Any] | None:
    wanted = select(policies).where(policies.c.bot_id == bot, policies.c.version == version)
    return (await conn.execute(wanted)).one_or_none()


async def versions_of(conn: AsyncConnection, bot: str, *, before: int | None, limit: int) -> list[Row[Any]]:
    """A bot's versions, the latest first; `before` the last one seen."""
    wanted = select(policies).where(policies.c.bot_id == bot).order_by(policies.c.version.desc()).limit(limit)
    if before is not None:
        wanted = wanted.where(policies.c.version < before)
    return list((await conn.execute(wanted)).all())
