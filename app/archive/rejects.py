"""Rows of rejects: records that could not be archived, kept as bytes for an admin to see and replay.

Nothing waits for a reject. `app.closing.rejects` defines the bytes.
"""

from typing import Any

from sqlalchemy import Row, Select, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.copy_rows import clean
from app.archive.tables import rejects

_LONGEST_ERROR = 2_000  # characters

# A list leaves out the payload, which may be as long as a session.
_LISTED = [column for column in rejects.c if column.name != "payload"]


async def add(conn: AsyncConnection, *, bot: str | None, session_id: str | None, error: str, payload: bytes) -> None:
    """Keep one record with what was wrong; `bot` and `session_id` are None if it cannot be read."""
    values = {"bot_id": bot, "session_id": session_id, "error": clean(error[:_LONGEST_ERROR]), "payload": payload}
    await conn.execute(insert(rejects).values(values))


async def page(conn: AsyncConnection, *, bots: frozenset[str] | None, before: int | None, limit: int) -> list[Row[Any]]:
    """Rejects, the latest first; `bots` are those that the caller may see (None: all), `before` the last one seen."""
    wanted = _of_bots(select(*_LISTED), bots).order_by(rejects.c.id.desc()).limit(limit)
    if before is not None:
        wanted = wanted.where(rejects.c.id < before)
    return list((await conn.execute(wanted)).all())


async def of_bot(conn: AsyncConnection, bot: str) -> list[Row[Any]]:
    """All rejects of a bot, with their payloads, locked for this transaction."""
    return list((await conn.execute(select(rejects).where(rejects.c.bot_id == bot).with_for_update())).all())


async def ids(conn: AsyncConnection, *, bots: frozenset[str] | None) -> list[int]:
    """The ids of all rejects of these bots, the oldest first."""
    return list(await conn.scalars(_of_bots(select(rejects.c.id), bots).order_by(rejects.c.id)))


async def find(conn: AsyncConnection, reject_id: int, *, locked: bool = False) -> Row[Any] | None:
    """One with its payload; `locked`: no other transaction changes it before this one ends."""
    wanted = select(rejects).where(rejects.c.id == reject_id)
    return (await conn.execute(wanted.with_for_update() if locked else wanted)).one_or_none()


async def remove(conn: AsyncConnection, reject_id: int) -> None:
    await conn.execute(delete(rejects).where(rejects.c.id == reject_id))


def _of_bots(wanted: Select[Any], bots: frozenset[str] | None) -> Select[Any]:
    return wanted if bots is None else wanted.where(rejects.c.bot_id.in_(sorted(bots)))
