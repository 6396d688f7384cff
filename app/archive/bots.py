"""Rows of bots. A deleted bot stays, so that its sessions keep their name and no other bot gets it."""

from typing import Any

from sqlalchemy import Row, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import bots, endpoints


async def create(conn: AsyncConnection, bot: str, *, name: str, sandbox: bool, clock_mode: str | None) -> Row[Any] | None:
    """The new row; None if there is, or was, a bot of this id."""
    values = {"id": bot, "name": name, "sandbox": sandbox, "clock_mode": clock_mode}
    made = await conn.execute(upsert(bots).values(values).on_conflict_do_nothing().returning(bots))
    row: Row[Any] | None = made.one_or_none()
    return row


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
