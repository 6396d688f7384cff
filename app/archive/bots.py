"""Rows of bots and of their policies.

A deleted bot stays, so that its sessions keep their name and no other bot gets it. Every version of a policy is kept, and the
latest applies.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import bots, endpoints, policies


async def create(conn: AsyncConnection, bot: str, **values: object) -> Row[Any] | None:
    """The new row, `values` by column; None if there is, or was, a bot of this id."""
    values["id"] = bot
    made = await conn.execute(upsert(bots).values(values).on_conflict_do_nothing().returning(bots))
    row: Row[Any] | None = made.one_or_none()
    return row


async def count(conn: AsyncConnection) -> int:
    """How many bots are not deleted."""
    return int(await conn.scalar(select(func.count()).select_from(bots).where(bots.c.deleted_at.is_(None))) or 0)


async def find(conn: AsyncConnection, bot: str) -> Row[Any] | None:
    """The bot, unless it is deleted."""
    found = await conn.execute(select(bots).where(bots.c.id == bot, bots.c.deleted_at.is_(None)))
    return found.one_or_none()


async def page(conn: AsyncConnection, *, only: frozenset[str] | None, after: str, limit: int) -> list[Row[Any]]:
    """Bots by id, those after `after`; `only` those that the caller may see (None: all)."""
    wanted = select(bots).where(bots.c.id > after, bots.c.deleted_at.is_(None)).order_by(bots.c.id).limit(limit)
    if only is not None:
        wanted = wanted.where(bots.c.id.in_(sorted(only)))
    return list((await conn.execute(wanted)).all())


async def change(conn: AsyncConnection, bot: str, changes: dict[str, Any]) -> Row[Any] | None:
    """The changed row; None if there is no such bot."""
    changed = await conn.execute(
        update(bots)
        .where(bots.c.id == bot, bots.c.deleted_at.is_(None))
        .values(changes | {"updated_at": func.now()})
        .returning(bots)
    )
    row: Row[Any] | None = changed.one_or_none()
    return row


async def delete(conn: AsyncConnection, bot: str) -> Row[Any] | None:
    """Mark a bot and its endpoints as deleted; None if there is no such bot."""
    deleted = await change(conn, bot, {"deleted_at": func.now()})
    await conn.execute(
        update(endpoints).where(endpoints.c.bot_id == bot, endpoints.c.deleted_at.is_(None)).values(deleted_at=func.now())
    )
    return deleted


async def missing(conn: AsyncConnection, names: list[str]) -> set[str]:
    """The names among `names` that no bot has."""
    found = await conn.scalars(select(bots.c.id).where(bots.c.id.in_(names), bots.c.deleted_at.is_(None)))
    return set(names) - set(found)


async def add_policy(
    conn: AsyncConnection, bot: str, *, version: int, policy: dict[str, Any], effective_at: datetime, key_id: str | None
) -> Row[Any]:
    """Save a version, as the admin wrote it. Writers of configuration hold one lock, so no other adds the same version."""
    values = {"bot_id": bot, "version": version, "policy": policy, "effective_at": effective_at, "changed_by": key_id}
    row: Row[Any] = (await conn.execute(insert(policies).values(values).returning(policies))).one()
    return row


async def latest_policy(conn: AsyncConnection, bot: str) -> Row[Any] | None:
    versions = await policy_versions(conn, bot, before=None, limit=1)
    return versions[0] if versions else None


async def policy_version(conn: AsyncConnection, bot: str, version: int) -> Row[Any] | None:
    wanted = select(policies).where(policies.c.bot_id == bot, policies.c.version == version)
    return (await conn.execute(wanted)).one_or_none()


async def policy_versions(conn: AsyncConnection, bot: str, *, before: int | None, limit: int) -> list[Row[Any]]:
    """A bot's versions, the latest first; `before` the last one seen."""
    wanted = select(policies).where(policies.c.bot_id == bot).order_by(policies.c.version.desc()).limit(limit)
    if before is not None:
        wanted = wanted.where(policies.c.version < before)
    return list((await conn.execute(wanted)).all())
