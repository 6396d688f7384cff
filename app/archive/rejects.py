"""What Postgres refused, set aside as bytes: an admin sees it, and nothing else waits for it."""

from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import rejects


async def add(conn: AsyncConnection, *, bot: str, session_id: str, error: str, payload: bytes) -> None:
    """Set one record aside with what was said of it."""
    values = {"kind": "session", "bot_id": bot, "session_id": session_id, "error": error[:2_000], "payload": payload}
    await conn.execute(insert(rejects).values(values))


async def page(conn: AsyncConnection, *, bots: frozenset[str] | None, before: int | None, limit: int) -> list[Row[Any]]:
    """What was set aside, the latest first; `bots` are those that the asker may see (None: all), `before` the last one seen."""
    wanted = select(rejects).order_by(rejects.c.id.desc()).limit(limit)
    if bots is not None:
        wanted = wanted.where(rejects.c.bot_id.in_(sorted(bots)))
    if before is not None:
        wanted = wanted.where(rejects.c.id < before)
    return list((await conn.execute(wanted)).all())
