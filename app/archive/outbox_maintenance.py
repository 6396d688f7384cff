"""Maintains the outbox: ends deliveries that will never be sent, deletes old ones, counts pending ones.

Each call does a portion, within its caller's transaction; what a worker has leased is left alone.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import instant

_CANCEL = text("""
    UPDATE deliveries SET status = 'cancelled', leased_until = NULL, failed_at = :now,
        last_error = coalesce(last_error, 'the endpoint is disabled or deleted')
    WHERE id IN (
        SELECT d.id FROM endpoints e JOIN deliveries d ON d.endpoint_id = e.id AND d.status = 'pending'
        WHERE (NOT e.enabled OR e.deleted_at IS NOT NULL) AND (d.leased_until IS NULL OR d.leased_until <= :now)
        LIMIT :room
        FOR UPDATE OF d SKIP LOCKED
    )
    RETURNING id
""")

_EXPIRE = text("""
    UPDATE deliveries SET status = 'failed', leased_until = NULL, failed_at = :now,
        last_error = coalesce(last_error, 'the endpoint did not answer for as long as deliveries are tried')
    WHERE id IN (
        SELECT d.id FROM endpoint_health h JOIN deliveries d ON d.endpoint_id = h.endpoint_id AND d.status = 'pending'
        WHERE h.opened_at IS NOT NULL AND d.queued_at < :since AND (d.leased_until IS NULL OR d.leased_until <= :now)
        LIMIT :room
        FOR UPDATE OF d SKIP LOCKED
    )
    RETURNING id
""")

_PRUNE = text("""
    DELETE FROM deliveries WHERE id IN (
        SELECT id FROM deliveries WHERE created_at < :since AND status = ANY(CAST(:statuses AS text[]))
        ORDER BY created_at LIMIT :room FOR UPDATE SKIP LOCKED
    )
    RETURNING id
""")

_DEPTH = text("SELECT count(*) FROM deliveries WHERE status = 'pending'")


async def cancel_unwanted(conn: AsyncConnection, *, room: int, now_ms: int) -> int:
    """Cancel pending deliveries of endpoints that were disabled or deleted; returns how many."""
    return await _count(conn, _CANCEL, {"room": room, "now": instant(now_ms)})


async def expire(conn: AsyncConnection, *, queued_before_ms: int, room: int, now_ms: int) -> int:
    """Give up deliveries that have waited that long behind an open breaker, where most never get all their attempts."""
    return await _count(conn, _EXPIRE, {"since": instant(queued_before_ms), "room": room, "now": instant(now_ms)})


async def prune(conn: AsyncConnection, statuses: Sequence[str], *, created_before_ms: int, room: int) -> int:
    """Delete deliveries of these statuses that are that old; returns how many."""
    return await _count(conn, _PRUNE, {"statuses": list(statuses), "since": instant(created_before_ms), "room": room})


async def depth(conn: AsyncConnection) -> int:
    """How many deliveries are pending."""
    return int(await conn.scalar(_DEPTH) or 0)


async def _count(conn: AsyncConnection, statement: TextClause, parameters: dict[str, Any]) -> int:
    return len((await conn.execute(statement, parameters)).all())
