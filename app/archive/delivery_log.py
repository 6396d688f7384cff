"""Deliveries as admins see and manage them: lists, one with its attempts, replays, tests of endpoints.

Sending is not done here: a replay makes a delivery pending again, under its old id, and the dispatcher takes it from there.
"""

from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Row, insert, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from app.archive.tables import attempts, deliveries, endpoints, instant, instant_or_none

ENDED_BADLY = ("failed", "cancelled")


class DeliveryFilter(Struct, frozen=True, kw_only=True):
    """Which deliveries; None: all. `bots`: those that the caller may see."""

    bots: frozenset[str] | None = None
    bot: str | None = None
    endpoint_id: str | None = None
    session_id: str | None = None
    event: str | None = None
    status: str | None = None
    since_ms: int | None = None


class DeliveryPlace(Struct, frozen=True):
    """Where a page ended: the last delivery on it."""

    created_at: datetime
    id: str


class TestDelivery(Struct, frozen=True, kw_only=True):
    """A test of an endpoint, and its outcome."""

    id: str
    endpoint_id: str
    bot: str
    event: str
    body: str
    at_ms: int
    duration_ms: int
    delivered: bool
    replied: int | None
    error: str | None
    reply: str


async def page(conn: AsyncConnection, wanted: DeliveryFilter, *, after: DeliveryPlace | None, limit: int) -> list[Row[Any]]:
    """Deliveries without their bodies, the newest first; `since_ms` goes by when they were made."""
    listed = select(*(column for column in deliveries.c if column.name != "body")).where(*_conditions(wanted))
    if after is not None:
        place = tuple_(literal(after.created_at), literal(after.id, deliveries.c.id.type))
        listed = listed.where(tuple_(deliveries.c.created_at, deliveries.c.id) < place)
    ordered = listed.order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit)
    return list(await conn.execute(ordered))


async def find(conn: AsyncConnection, delivery_id: str) -> Row[Any] | None:
    return (await conn.execute(select(deliveries).where(deliveries.c.id == delivery_id))).one_or_none()


async def attempts_of(conn: AsyncConnection, delivery_id: str) -> list[Row[Any]]:
    """In order. A number that is missing is an attempt whose worker died before it could record the outcome."""
    wanted = select(attempts).where(attempts.c.delivery_id == delivery_id).order_by(attempts.c.attempt)
    return list(await conn.execute(wanted))


async def replay(conn: AsyncConnection, delivery_id: str, *, now_ms: int) -> bool:
    """Make one pending again, with its schedule from the start; False if it is pending already."""
    changed = await conn.execute(_replayed(deliveries.c.id == delivery_id, deliveries.c.status != "pending", now_ms=now_ms))
    return changed.first() is not None


async def replay_failed(conn: AsyncConnection, wanted: DeliveryFilter, *, room: int, now_ms: int) -> int:
    """Make up to `room` dead letters (failed, cancelled) pending again whose endpoints are enabled; returns how many.

    `since_ms` goes by when they failed.
    """
    since = instant_or_none(wanted.since_ms)
    chosen = (
        select(deliveries.c.id)
        .join(endpoints, endpoints.c.id == deliveries.c.endpoint_id)
        .where(
            *_conditions(DeliveryFilter(bots=wanted.bots, bot=wanted.bot, endpoint_id=wanted.endpoint_id)),
            deliveries.c.status.in_(ENDED_BADLY),
            deliveries.c.failed_at >= since,
            endpoints.c.enabled,
            endpoints.c.deleted_at.is_(None),
        )
        .limit(room)
        .with_for_update(of=deliveries, skip_locked=True)
    )
    return len((await conn.execute(_replayed(deliveries.c.id.in_(chosen), now_ms=now_ms))).all())


async def insert_test(conn: AsyncConnection, test: TestDelivery) -> None:
    """Keep a test of an endpoint and its one attempt: listed like any delivery, though it never was in the outbox."""
    at = instant(test.at_ms)
    status = "delivered" if test.delivered else "failed"
    await conn.execute(
        insert(deliveries).values(
            id=test.id,
            endpoint_id=test.endpoint_id,
            bot_id=test.bot,
            event=test.event,
            body=test.body,
            event_at=at,
            created_at=at,
            queued_at=at,
            next_attempt_at=at,
            status=status,
            attempt=1,
            last_status=test.replied,
            last_error=test.error,
            **{f"{status}_at": at},
        )
    )
    await conn.execute(
        insert(attempts).values(
            delivery_id=test.id,
            attempt=1,
            started_at=at,
            duration_ms=test.duration_ms,
            status=test.replied,
            error=test.error,
            reply=test.reply,
        )
    )


def _replayed(*conditions: ColumnElement[bool], now_ms: int) -> ReturningUpdate[tuple[str]]:
    now = instant(now_ms)
    return (
        update(deliveries)
        .where(*conditions)
        .values(
            status="pending",
            queued_at=now,
            next_attempt_at=now,
            uncounted=deliveries.c.attempt,
            leased_until=None,
            delivered_at=None,
            failed_at=None,
        )
        .returning(deliveries.c.id)
    )


def _conditions(wanted: DeliveryFilter) -> list[ColumnElement[bool]]:
    pairs = (
        (deliveries.c.bot_id, wanted.bot),
        (deliveries.c.endpoint_id, wanted.endpoint_id),
        (deliveries.c.session_id, wanted.session_id),
        (deliveries.c.event, wanted.event),
        (deliveries.c.status, wanted.status),
    )
    conditions = [column == value for column, value in pairs if value is not None]
    if wanted.bots is not None:
        conditions.append(deliveries.c.bot_id.in_(sorted(wanted.bots)))
    if wanted.since_ms is not None:
        conditions.append(deliveries.c.created_at >= instant(wanted.since_ms))
    return conditions
