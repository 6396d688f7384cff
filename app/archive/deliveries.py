"""Enqueues events: one delivery for each endpoint that subscribes to them, in the archivist's own transaction.

A delivery's id is made of session, endpoint and event, so an event that is archived twice is one delivery. Its body is written
here, once: every attempt sends the same bytes. `app.archive.outbox` does the rest.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid5

from msgspec import Struct, json, structs
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import instant
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
