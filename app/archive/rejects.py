"""What could not be archived, set aside as bytes: an admin sees it, and nothing else waits for it."""

from typing import Any

from sqlalchemy import Row, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import rejects

# What a list tells of each; the record itself may be as long as a session.
_TOLD = [rejects.c.id, rejects.c.at, rejects.c.bot_id, rejects.c.session_id, rejects.c.error]


async def add(conn: AsyncConnection, *, bot: str | None, session_id: str | None, error: str, payload: bytes) -> None:
    """Set one record aside with what was said of it; `bot` and `session_id` are None where it cannot be read."""
    told = error.replace("\x00", "\ufffd")[:2_000]
    values = {"kind": "session", "bot_id": bot, "session_id": session_id, "error": told, "payload": payload}
    await conn.execute(insert(rejects).values(values))


async def page(conn: AsyncConnection, *, bots: frozenset[str] | None, before: int | None, limit: int) -> list[Row[Any]]:
    """What was set aside, the latest first; `bots` are those that the asker may see (None: all), `before` the last one seen."""
    wanted = select(*_TOLD).order_by(rejects.c.id.desc()).limit(limit)
    if bots is not None:
        wanted = wanted.where(rejects.c.bot_id.in_(sorted(bots)))
    if before is not None:
        wanted = wanted.where(rejects.c.id < before)
    return list((await conn.execute(wanted)).all())


async def find(conn: AsyncConnection, reject_id: int, *, locked: bool = False) -> Row[Any] | None:
    """One with its payload; `locked`: nobody else gets it before this transaction ends."""
    wanted = select(rejects).where(rejects.c.id == reject_id)
    return (await conn.execute(wanted.with_for_update() if locked else wanted)).one_or_none()


async def remove(conn: AsyncConnection, reject_id: int) -> None:
    await conn.execute(delete(rejects).where(rejects.c.id == reject_id))
