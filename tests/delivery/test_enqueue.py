"""Events become deliveries: one for each endpoint that wants it, once, with the body that will be sent."""

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import deliveries
from app.archive.deliveries import payload
from app.domain.instants import rfc3339
from app.domain.records import Event
from app.domain.strand import event_id
from tests.delivery.outbox_rows import CLOSED, CLOSURE_MESSAGE, Outbox


def test_the_payload_is_as_standard_webhooks_recommends(outbox: Outbox) -> None:
    """Type, the event's own instant, and the data: which event, whose, by which rule, the session, and what it adds."""
    (strand, event), _ = outbox.closed(closure_message=True, at_ms=1_795_219_200_123)
    sent = msgspec.json.decode(payload(event, strand))

    assert sent["type"] == CLOSURE_MESSAGE
    assert sent["timestamp"] == "2026-11-21T00:00:00.123Z"
    assert sent["data"]["event_id"] == event_id(event)
    assert sent["data"]["bot"] == "shop"
    assert sent["data"]["rule"] == "K07"
    assert sent["data"]["session"]["id"] == event.session.id
    assert sent["data"]["session"]["closed_at"] == rfc3339(1_795_219_200_123)
    assert (sent["data"]["text"], sent["data"]["language"]) == ("Good-bye", "en")


def test_events_that_can_repeat_have_ids_of_their_own(outbox: Outbox) -> None:
    """A second reminder of a session is not taken for the first."""
    ((_, event),) = outbox.closed()
    first = Event("session.reminder", event.session, 1_000, "K07")
    second = Event("session.reminder", event.session, 2_000, "K07")

    assert event_id(first) != event_id(second)
    assert event_id(first) == event_id(Event("session.reminder", event.session, 1_000, "K07"))


async def test_each_endpoint_gets_what_it_subscribes_to(outbox: Outbox) -> None:
    """One row for each of session, endpoint and event; other bots', disabled and deleted endpoints get none."""
    both = await outbox.endpoint("http://a.example/")
    end_only = await outbox.endpoint("http://b.example/", events=[CLOSED])
    await outbox.endpoint("http://c.example/", bot="other")
    off = await outbox.endpoint("http://d.example/")
    deleted = await outbox.endpoint("http://e.example/")
    await outbox.run("UPDATE endpoints SET enabled = false WHERE id = CAST(:id AS uuid)", id=off)
    await outbox.run("UPDATE endpoints SET deleted_at = now() WHERE id = CAST(:id AS uuid)", id=deleted)
    await outbox.add(closure_message=True)
    rows = await outbox.all()

    assert sorted((str(row.endpoint_id), row.event) for row in rows) == sorted(
        [(both, CLOSURE_MESSAGE), (both, CLOSED), (end_only, CLOSED)]
    )


async def test_a_session_archived_twice_is_enqueued_once(outbox: Outbox) -> None:
    """The archivist repeats a step after a crash: ids are the same, so nothing is added, and nothing is sent again."""
    await outbox.endpoint("http://a.example/")
    events = outbox.closed(closure_message=True)
    await outbox.enqueue(events)
    await outbox.run("UPDATE deliveries SET status = 'delivered'")
    await outbox.enqueue(events)

    assert await outbox.statuses() == {"delivered": 2}


async def test_the_end_waits_for_the_farewell_of_the_same_endpoint(outbox: Outbox) -> None:
    """Only there where both are wanted; elsewhere the end waits for nothing."""
    both = await outbox.endpoint("http://a.example/")
    end_only = await outbox.endpoint("http://b.example/", events=[CLOSED])
    await outbox.add(closure_message=True)
    rows = {(str(row.endpoint_id), row.event): row for row in await outbox.all()}

    assert rows[both, CLOSED].after_id == rows[both, CLOSURE_MESSAGE].id
    assert rows[both, CLOSURE_MESSAGE].after_id is None
    assert rows[end_only, CLOSED].after_id is None


async def test_no_endpoint_no_row(outbox: Outbox) -> None:
    """Bots without webhooks cost the outbox nothing."""
    await outbox.bot()
    await outbox.add(3, closure_message=True)

    assert await outbox.all() == []


async def test_nothing_is_left_of_a_transaction_that_fails(outbox: Outbox, engine: AsyncEngine) -> None:
    """Session and deliveries are one transaction: neither is there without the other."""
    await outbox.endpoint("http://a.example/")
    async with engine.connect() as conn:
        await deliveries.enqueue(conn, outbox.closed())
        await conn.rollback()

    assert await outbox.all() == []


async def test_thousands_are_one_statement(outbox: Outbox) -> None:
    """A batch of 2,000 sessions with two events and two endpoints is 8,000 rows in one go."""
    await outbox.endpoint("http://a.example/")
    await outbox.endpoint("http://b.example/")
    await outbox.add(2_000, closure_message=True)

    assert await outbox.statuses() == {"pending": 8_000}
