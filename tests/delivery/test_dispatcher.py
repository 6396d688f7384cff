"""Deliveries are signed, sent in order, retried on schedule, and failed in the end."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from app.archive.tables import instant
from app.clock import wall_ms
from app.delivery.dispatcher import GIVE_UP_AFTER_MS, KEPT_MS, Dispatcher
from app.delivery.retry import DELAYS_MS, FAILURES_TO_OPEN, FIRST_PAUSE_MS
from app.domain.instants import DAY_MS, MINUTE_MS, ms_of
from app.ids import new_webhook_secret
from tests.delivery.outbox_rows import CLOSED, CLOSURE_MESSAGE, Outbox
from tests.receiver import Receiver, busy, fails, gone, in_turn, redirect, reply

Run = Callable[..., Awaitable[int]]


@pytest.fixture
def run(dispatcher: Dispatcher) -> Run:
    """Tick at an instant and wait until everything that was due then is sent and recorded; gives the instant."""

    async def run_at(now_ms: int | None = None) -> int:
        at_ms = wall_ms() if now_ms is None else now_ms
        await dispatcher.run_once(at_ms)
        await dispatcher.idle()
        return at_ms

    return run_at


async def test_an_event_is_delivered_signed_and_once(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """The received webhook verifies with the library, and is not sent again."""
    endpoint = await outbox.endpoint(receiver.url())
    (session,) = await outbox.add()
    now_ms = await run()
    await run(now_ms + DAY_MS)
    (request,) = receiver.requests
    event = request.verify(outbox.secrets[endpoint])
    row = await outbox.only()

    assert event["type"] == CLOSED
    assert event["data"]["session"]["id"] == session
    assert request.id == str(row.id)
    assert (row.status, row.attempt, row.last_status, row.leased_until) == ("delivered", 1, 200, None)
    assert ms_of(row.delivered_at) >= now_ms


async def test_each_attempt_is_kept_with_its_answer(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """An admin sees when, how long, what status, and how the reply began."""
    await outbox.endpoint(receiver.behave("/hook", in_turn(reply(500, b"database locked"), reply(200, b"thanks"))))
    await outbox.add()
    first_ms = await run()
    await run(first_ms + 6_000)
    first, second = await outbox.attempts()

    assert (first.attempt, first.status, first.error, first.reply) == (1, 500, "5xx: answered 500", "database locked")
    assert (second.attempt, second.status, second.error, second.reply) == (2, 200, None, "thanks")
    assert first.started_at >= instant(first_ms)
    assert second.started_at >= instant(first_ms + 6_000)
    assert first.duration_ms >= 0


async def test_what_a_limited_admin_named_reaches_no_private_address(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """The address is checked at the connection, whatever the name resolved to before, and nothing is read from it."""
    endpoint = await outbox.endpoint(receiver.url(host="localhost"))
    await outbox.run("UPDATE endpoints SET private_allowed = false WHERE id = :id", id=endpoint)
    await outbox.add()
    await run()
    (attempt,) = await outbox.attempts()

    assert attempt.error.startswith("address_refused: localhost is ")
    assert (attempt.status, attempt.reply) == (None, "")
    assert receiver.connections == 0


async def test_retries_follow_the_schedule_under_one_id(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """Never before its time, always the same id and body, a fresh timestamp and signature each time."""
    endpoint = await outbox.endpoint(receiver.behave("/hook", fails(2)))
    await outbox.add()
    now_ms = await run()
    await run(now_ms + DELAYS_MS[0] - 1_000)
    early = len(receiver.requests)
    now_ms = await run(now_ms + DELAYS_MS[0] + 1_000)
    await run(now_ms + DELAYS_MS[1] + 1_000)
    ids = {request.id for request in receiver.requests}
    stamps = {request.headers["webhook-timestamp"] for request in receiver.requests}

    assert early == 1
    assert len(receiver.requests) == 3
    assert len(ids) == 1
    assert len(stamps) == 3
    assert len({request.body for request in receiver.requests}) == 1
    assert all(request.is_signed_with(outbox.secrets[endpoint]) for request in receiver.requests)
    assert await outbox.statuses() == {"delivered": 1}


async def test_after_the_last_attempt_it_is_a_dead_letter(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """Thirteen attempts over three days, then it waits for an admin and not for a receiver."""
    await outbox.endpoint(receiver.behave("/hook", reply(500)))
    await outbox.add()
    now_ms = await run()
    for delay_ms in DELAYS_MS:
        now_ms = await run(now_ms + max(delay_ms, 5 * MINUTE_MS) + 5_000)  # past the breaker's pause, too
    await run(now_ms + DAY_MS)
    row = await outbox.only()

    assert len(receiver.requests) == len(DELAYS_MS) + 1
    assert (row.status, row.attempt, row.last_status) == ("failed", len(DELAYS_MS) + 1, 500)
    assert row.failed_at is not None


@pytest.mark.parametrize("status", (429, 503))
async def test_retry_after_is_honoured(run: Run, outbox: Outbox, receiver: Receiver, status: int) -> None:
    """A receiver that asks for an hour gets an hour, and not the five seconds of the schedule."""
    await outbox.endpoint(receiver.behave("/hook", in_turn(busy("3600", status=status), reply())))
    await outbox.add()
    now_ms = await run()
    await run(now_ms + 3_590_000)
    early = len(receiver.requests)
    await run(now_ms + 3_610_000)

    assert early == 1
    assert await outbox.statuses() == {"delivered": 1}


async def test_retry_after_is_capped_at_a_day(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """A receiver cannot postpone a delivery for a year."""
    await outbox.endpoint(receiver.behave("/hook", busy("99999999")))
    await outbox.add()
    now_ms = await run()
    row = await outbox.only()

    assert DAY_MS - 1_000 <= ms_of(row.next_attempt_at) - now_ms <= DAY_MS + 60_000


async def test_a_redirect_is_a_failure(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """It is tried again where the admin said, and never where the answer says."""
    await outbox.endpoint(receiver.behave("/hook", redirect(receiver.url("/other"))))
    await outbox.add()
    await run()
    row = await outbox.only()

    assert (row.status, row.last_status) == ("pending", 307)
    assert receiver.at("/other") == []


async def test_410_disables_the_endpoint_and_ends_what_waits(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """The reason is there to read, the change is in the audit log, and nothing more is sent."""
    endpoint = await outbox.endpoint(receiver.behave("/hook", gone()))
    await outbox.enqueue(outbox.closed())
    now_ms = await run()
    await outbox.run("UPDATE endpoints SET enabled = true")
    await outbox.add(3)
    await outbox.run("UPDATE endpoints SET enabled = false")
    await run(now_ms + 10_000)
    row = await outbox.endpoint_row(endpoint)
    (logged,) = await outbox.run("SELECT * FROM audit_log")

    assert len(receiver.requests) == 1
    assert not row.enabled
    assert "410" in row.disabled_reason
    assert (logged.actor, logged.action, logged.bot_id, logged.target) == ("adjourn", "endpoint.disabled", "shop", endpoint)
    assert await outbox.statuses() == {"failed": 1, "cancelled": 3}


async def test_while_secrets_overlap_both_sign(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """Until the old one expires every webhook verifies with either; then with the new one alone."""
    endpoint = await outbox.endpoint(receiver.url())
    old = new_webhook_secret()
    now_ms = wall_ms()
    await outbox.run(
        "UPDATE endpoints SET previous_secret = :old, previous_secret_expires_at = :until",
        old=old,
        until=instant(now_ms + MINUTE_MS),
    )
    await outbox.add()
    await run()
    await outbox.add()
    await run(now_ms + MINUTE_MS)
    during, after = receiver.requests

    assert during.is_signed_with(outbox.secrets[endpoint])
    assert during.is_signed_with(old)
    assert after.is_signed_with(outbox.secrets[endpoint])
    assert not after.is_signed_with(old)


async def test_the_closure_message_goes_before_the_end(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """For one session and endpoint, `session.closed` is not sent before the closure message was taken."""
    await outbox.endpoint(receiver.url())
    sessions = await outbox.add(20, closure_message=True)
    await run()
    types = {session: [] for session in sessions}  # type: dict[str, list[str]]
    for request in receiver.requests:
        types[request.event["data"]["session"]["id"]].append(request.type)

    assert set(map(tuple, types.values())) == {(CLOSURE_MESSAGE, CLOSED)}


async def test_the_closure_message_goes_before_the_end_over_retries(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """While the closure message is tried again, `session.closed` waits, and costs no look at each tick."""
    await outbox.endpoint(receiver.behave("/hook", fails(2)))
    await outbox.add(closure_message=True)
    now_ms = await run()
    first = [request.type for request in receiver.requests]
    waiting = {row.event: row.next_attempt_at for row in await outbox.all()}
    for delay_ms in (*DELAYS_MS[:2], 1_000):
        now_ms = await run(now_ms + delay_ms + 1_000)

    assert first == [CLOSURE_MESSAGE]
    assert waiting[CLOSED] == waiting[CLOSURE_MESSAGE]
    assert [request.type for request in receiver.requests] == [CLOSURE_MESSAGE, CLOSURE_MESSAGE, CLOSURE_MESSAGE, CLOSED]


async def test_the_end_is_sent_when_the_closure_message_has_failed(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """A closure message that cannot be delivered does not block `session.closed` for ever."""
    await outbox.endpoint(receiver.url())
    await outbox.add(closure_message=True)
    await outbox.run("UPDATE deliveries SET status = 'failed' WHERE event = 'session.closure_message'")
    await run()

    assert [request.type for request in receiver.requests] == [CLOSED]


async def test_sessions_do_not_wait_for_each_other(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """The order is one session's: another one's closure message being tried again holds nothing up."""
    await outbox.endpoint(receiver.behave("/hook", fails(1)))
    stuck, free = await outbox.add(2, closure_message=True)
    await outbox.run(
        "UPDATE deliveries SET next_attempt_at = next_attempt_at - interval '1 s' WHERE session_id = CAST(:id AS uuid)", id=stuck
    )
    await run()
    sent = [(request.event["data"]["session"]["id"], request.type) for request in receiver.requests]

    assert (free, CLOSED) in sent
    assert (stuck, CLOSED) not in sent


async def test_a_dead_endpoint_is_tried_one_at_a_time(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """After five failures in a row its deliveries wait; then one goes, and only one."""
    await outbox.endpoint(receiver.behave("/hook", reply(500)))
    await outbox.add(30)
    now_ms = await run()
    opened = len(receiver.requests)
    await run(now_ms + FIRST_PAUSE_MS - 1_000)
    paused = len(receiver.requests)
    await run(now_ms + FIRST_PAUSE_MS + 1_000)
    (health,) = await outbox.health()

    assert FAILURES_TO_OPEN <= opened <= 10  # those under way when it opened are not called back
    assert paused == opened
    assert len(receiver.requests) == opened + 1
    assert health.failures == FAILURES_TO_OPEN + 1


async def test_an_endpoint_that_comes_back_gets_everything(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """The first success closes the breaker: all that waited goes out at once, and nothing of it is forgotten."""
    await outbox.endpoint(receiver.behave("/hook", reply(500)))
    await outbox.add(30)
    now_ms = await run()
    receiver.behave("/hook", reply())
    await run(now_ms + MINUTE_MS)

    assert await outbox.statuses() == {"delivered": 30}
    assert await outbox.health() == []


async def test_deliveries_to_a_dead_endpoint_fail_in_the_end(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """Behind an open breaker few get their thirteen attempts; they become dead letters all the same."""
    await outbox.endpoint(receiver.behave("/hook", reply(500)))
    await outbox.add(30)
    now_ms = await run()
    await outbox.run("UPDATE endpoint_health SET resume_at = :late", late=instant(now_ms) + timedelta(days=30))
    await run(now_ms + GIVE_UP_AFTER_MS - MINUTE_MS)
    before = await outbox.statuses()
    await run(now_ms + GIVE_UP_AFTER_MS + MINUTE_MS)

    assert before == {"pending": 30}
    assert await outbox.statuses() == {"failed": 30}


async def test_a_backlog_of_a_healthy_endpoint_is_never_given_up(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """After a week without workers the deliveries are sent, not failed."""
    await outbox.endpoint(receiver.url())
    await outbox.add(5)
    await run(wall_ms() + GIVE_UP_AFTER_MS + DAY_MS)

    assert await outbox.statuses() == {"delivered": 5}


async def test_deliveries_to_a_deleted_endpoint_are_cancelled(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """Nothing is sent to it, and nothing is left pending."""
    await outbox.endpoint(receiver.url())
    await outbox.add(5)
    await outbox.run("UPDATE endpoints SET deleted_at = now()")
    await run()

    assert receiver.requests == []
    assert await outbox.statuses() == {"cancelled": 5}


async def test_old_deliveries_are_deleted(run: Run, outbox: Outbox, receiver: Receiver) -> None:
    """Delivered ones after a month, dead letters after three, pending ones never."""
    await outbox.endpoint("http://127.0.0.1:1/closed")
    await outbox.add(3)
    await outbox.run("UPDATE endpoint_health SET failures = 0")
    delivered, failed, _ = await outbox.all()
    await outbox.run("UPDATE deliveries SET status = 'delivered' WHERE id = :id", id=delivered.id)
    await outbox.run("UPDATE deliveries SET status = 'failed' WHERE id = :id", id=failed.id)
    await outbox.run("INSERT INTO attempts (delivery_id, attempt, started_at) VALUES (:id, 1, now())", id=delivered.id)
    await outbox.run("UPDATE deliveries SET next_attempt_at = now() + interval '1 year' WHERE status = 'pending'")
    now_ms = wall_ms()
    counts = []
    for kept_ms in sorted(KEPT_MS.values()):
        await run(now_ms + kept_ms - MINUTE_MS)
        counts.append(await outbox.statuses())
        now_ms = await run(now_ms + kept_ms + 20 * MINUTE_MS) - kept_ms - 20 * MINUTE_MS
        counts.append(await outbox.statuses())

    assert counts == [
        {"delivered": 1, "failed": 1, "pending": 1},
        {"failed": 1, "pending": 1},
        {"failed": 1, "pending": 1},
        {"pending": 1},
    ]
    assert await outbox.attempts() == []
    assert receiver.requests == []


async def test_a_full_outbox_is_worked_off_without_waiting_for_ticks(
    dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """Each recorded attempt makes room for the next claim: 500 deliveries of one endpoint are one tick's work."""
    await outbox.endpoint(receiver.url())
    await outbox.add(500)
    await dispatcher.run_once(wall_ms())
    async with asyncio.timeout(30):
        await dispatcher.idle()

    assert await outbox.statuses() == {"delivered": 500}
    assert len({request.id for request in receiver.requests}) == len(receiver.requests) == 500
