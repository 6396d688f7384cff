"""Deliveries: enqueued in the archivist's own transaction, and as admins see and manage them.

An event has one delivery for each endpoint that subscribes to it. Its id is made of session, endpoint and event, so an event that
is archived twice is one delivery. Its body is written here, once: every attempt sends the same bytes.

Lists, one delivery with its attempts, replays and tests of endpoints are for admins. Sending is not done here: a replay makes a
delivery pending again, under its old id, and the dispatcher takes it (`app.archive.outbox`).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid5

from msgspec import Struct, json, structs
from sqlalchemy import ColumnElement, Row, insert, literal, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import ReturningUpdate

from app.archive.session_reads import rows_within
from app.archive.tables import attempts, deliveries, endpoints, instant, instant_or_none
from app.domain.instants import rfc3339
from app.domain.records import Event
from app.domain.session_view import session_view
from app.domain.strand import EVENT_NAMESPACE, Strand, event_id, event_name

_ENDPOINTS = text("""
    SELECT id, bot_id, events FROM endpoints WHERE bot_id = ANY(CAST(:bots AS text[])) AND enabled AND deleted_at IS NULL
""")

# Due at the event's own instant rather than at Postgres's now: what is due is decided by Redis's clock, which may be behind.
# A sandbox bot's instants can be anything, so they count within the last minute alone.
_ENQUEUE = text("""
    INSERT INTO deliveries (id, endpoint_id, bot_id, session_id, event, event_at, body, after_id, next_attempt_at)
    SELECT n.id, n.endpoint_id, n.bot_id, n.session_id, n.event, n.event_at, n.body, n.after_id,
           least(now(), greatest(n.event_at, now() - interval '1 minute'))
    FROM unnest(CAST(:ids AS uuid[]), CAST(:endpoints AS uuid[]), CAST(:bots AS text[]), CAST(:sessions AS uuid[]),
                CAST(:events AS text[]), CAST(:event_ats AS timestamptz[]), CAST(:bodies AS text[]), CAST(:afters AS uuid[]))
        AS n(id, endpoint_id, bot_id, session_id, event, event_at, body, after_id)
    ON CONFLICT DO NOTHING
""")


class _Subscriber(Struct, frozen=True):
    endpoint_id: str
    events: frozenset[str]


class _Row(Struct, frozen=True):
    id: str
    endpoint_id: str
    bot: str
    event: Event
    body: str
    after_id: str | None


def payload(event: Event, strand: Strand) -> bytes:
    """The body of a webhook, as Standard Webhooks recommends: `type`, `timestamp` (of the event) and `data`."""
    data = {
        "event_id": event_id(event),
        "bot": strand.bot,
        "rule": event.rule,
        "session": session_view(strand, event.session),
        **(event.data or {}),
    }
    return json.encode({"type": event.type, "timestamp": rfc3339(event.at_ms), "data": data})


def delivery_id(event: Event, endpoint_id: str) -> str:
    """One event to one endpoint: the `webhook-id` of all its attempts."""
    return str(uuid5(EVENT_NAMESPACE, f"{event_name(event)}/{endpoint_id}"))


async def enqueue(conn: AsyncConnection, events: Sequence[tuple[Strand, Event]]) -> int:
    """Add a delivery for each of these events and each enabled endpoint of its bot that subscribes to it; returns how many.

    Three kinds of event go out in their order: a session's closure message, its close, its updates.
    """
    subscribers = await _subscribers(conn, {strand.bot for strand, _ in events})
    rows = list(_rows(events, subscribers))
    if rows:
        await conn.execute(_ENQUEUE, _columns(rows))
    return len(rows)


async def _subscribers(conn: AsyncConnection, bots: set[str]) -> dict[str, list[_Subscriber]]:
    found: dict[str, list[_Subscriber]] = defaultdict(list)
    if bots:
        for row in await conn.execute(_ENDPOINTS, {"bots": list(bots)}):
            found[row.bot_id].append(_Subscriber(str(row.id), frozenset(row.events)))
    return found


def _rows(events: Sequence[tuple[Strand, Event]], subscribers: dict[str, list[_Subscriber]]) -> Iterable[_Row]:
    closure_messages = {event.session.id: event for _, event in events if event.type == "session.closure_message"}
    for strand, event in events:
        subscribed = [each for each in subscribers.get(strand.bot, ()) if event.type in each.events]
        body = payload(event, strand).decode() if subscribed else ""
        before = closure_messages.get(event.session.id) if event.type == "session.closed" else _before_update(event)
        for each in subscribed:
            after = delivery_id(before, each.endpoint_id) if before and before.type in each.events else None
            yield _Row(delivery_id(event, each.endpoint_id), each.endpoint_id, strand.bot, event, body, after)


def _before_update(event: Event) -> Event | None:
    """The event that goes out before an update: the update before it, or the close."""
    if event.type != "session.updated":
        return None
    if event.session.late_entries <= 1:
        return structs.replace(event, type="session.closed")
    return structs.replace(event, session=structs.replace(event.session, late_entries=event.session.late_entries - 1))


def _columns(rows: Sequence[_Row]) -> dict[str, Any]:
    return {
        "ids": [row.id for row in rows],
        "endpoints": [row.endpoint_id for row in rows],
        "bots": [row.bot for row in rows],
        "sessions": [row.event.session.id for row in rows],
        "events": [row.event.type for row in rows],
        "event_ats": [instant(row.event.at_ms) for row in rows],
        "bodies": [row.body for row in rows],
        "afters": [row.after_id for row in rows],
    }


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


async def of_sessions(
    conn: AsyncConnection, sessions: Collection[str], *, after: str | None, limit: int, most_bytes: int
) -> list[Row[Any]]:
    """Deliveries of these sessions' events by id, those after `after`, up to the one that passes `most_bytes`."""
    wanted = select(deliveries).where(deliveries.c.session_id.in_(sorted(sessions))).order_by(deliveries.c.id).limit(limit)
    if after is not None:
        wanted = wanted.where(deliveries.c.id > after)
    return await rows_within(conn, wanted, lambda row: row, size=lambda row: len(row.body), most_bytes=most_bytes)


async def attempts_of_all(conn: AsyncConnection, delivery_ids: Sequence[str]) -> dict[str, list[Row[Any]]]:
    """The attempts of these deliveries, each one's in order."""
    found: dict[str, list[Row[Any]]] = {each: [] for each in delivery_ids}
    wanted = select(attempts).where(attempts.c.delivery_id.in_(list(delivery_ids))).order_by(attempts.c.attempt)
    for row in await conn.execute(wanted):
        found[row.delivery_id].append(row)
    return found


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
