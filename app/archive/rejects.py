"""What Postgres refused, set aside as bytes: an admin sees it, and nothing else waits for it."""

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import rejects


async def add(conn: AsyncConnection, *, bot: str, session_id: str, error: str, payload: bytes) -> None:
    """Set one record aside with what was said of it."""
    values = {"kind": "session", "bot_id": bot, "session_id": session_id, "error": error[:2_000], "payload": payload}
    await conn.execute(insert(rejects).values(values))
