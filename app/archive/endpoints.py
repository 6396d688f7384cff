"""Rows of webhook endpoints. A deleted one stays, since its deliveries and attempts still name it."""

from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import endpoints


async def create(conn: AsyncConnection, endpoint: str, bot: str, **values: object) -> Row[Any]:
    """The new row; `values` by column."""
    values |= {"id": endpoint, "bot_id": bot}
    row: Row[Any] = (await conn.execute(insert(endpoints).values(values).returning(endpoints))).one()
    return row


async def find(conn: AsyncConnection, endpoint: str) -> Row[Any] | None:
    """The endpoint, unless it is deleted."""
    found = await conn.execute(select(endpoints).where(endpoints.c.id == endpoint, endpoints.c.deleted_at.is_(None)))
    return found.one_or_none()


async def of_bot(conn: AsyncConnection, bot: str) -> list[Row[Any]]:
    """A bot's endpoints, the oldest first."""
    wanted = select(endpoints).where(endpoints.c.bot_id == bot, endpoints.c.deleted_at.is_(None)).order_by(endpoints.c.id)
    return list((await conn.execute(wanted)).all())


async def change(conn: AsyncConnection, endpoint: str, changes: dict[str, Any]) -> Row[Any]:
    """The changed row of an endpoint that was found in this transaction."""
    changed = (
        update(endpoints).where(endpoints.c.id == endpoint).values(changes | {"updated_at": func.now()}).returning(endpoints)
    )
    row: Row[Any] = (await conn.execute(changed)).one()
    return row


async def delete(conn: AsyncConnection, endpoint: str) -> None:
    await conn.execute(update(endpoints).where(endpoints.c.id == endpoint).values(deleted_at=func.now()))
