"""A worker may die, hang or lose Postgres at any step: every delivery is made, under one id, and by one worker at a time."""

import asyncio
from collections.abc import Callable
from threading import Event

import pytest
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import outbox as outbox_store
from app.archive.engine import make_engine
from app.archive.outbox import Claim, DueEndpoint, Room
from app.clock import wall_ms
from app.delivery import recorder as recorder_module
from app.delivery.dispatcher import ENDPOINT_FRACTION, Dispatcher
from app.delivery.recorder import Attempt, record
from app.delivery.retry import max_in_flight
from app.delivery.sender import Delivered
from app.errors import Unavailable
from app.settings import Settings
from tests.delivery.conftest import DispatcherMaker
from tests.delivery.outbox_rows import CLOSED, CLOSURE_MESSAGE, Outbox
from tests.receiver import Receiver, held, reply, silence

LEASE_MS = 15_000 + 15_000


async def claim_and_die(engine: AsyncEngine, *, now_ms: int, room: int = 50) -> list[Claim]:
    """Claim like a worker that is killed before its first POST."""
    async with engine.begin() as conn:
        due: list[DueEndpoint] = await outbox_store.lock_due(conn, room=Room(prompt=0, others=room), now_ms=now_ms)
        endpoints = [(each, max_in_flight(each.failures, limit=room)) for each in due]
        return await outbox_store.lease(conn, endpoints, room=room, now_ms=now_ms, lease_ms=LEASE_MS, busy={}, of_bot=room)


async def tick(dispatcher: Dispatcher, now_ms: int) -> None:
    await dispatcher.run_once(now_ms)
    await dispatcher.idle()


@pytest.fixture
def no_recording(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make every record fail as if the process had died before it; call it to let them through again."""

    async def die(*_: object, **__: object) -> None:
        msg = "killed"
        raise OSError(msg)

    monkeypatch.setattr(recorder_module, "record", die)
    return lambda: monkeypatch.setattr(recorder_module, "record", record)


async def test_killed_between_claim_and_post(
    engine: AsyncEngine, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """Claimed deliveries that were never sent are sent when the lease expires, and not before."""
    await outbox.endpoint(receiver.url())
    await outbox.add(5)
    now_ms = wall_ms()
    claims = await claim_and_die(engine, now_ms=now_ms)
    await tick(dispatcher, now_ms + LEASE_MS - 5_000)
    early = len(receiver.requests)
    await tick(dispatcher, now_ms + LEASE_MS + 1)

    assert early == 0
    assert sorted(request.id for request in receiver.requests) == sorted(claim.id for claim in claims)
    assert await outbox.statuses() == {"delivered": 5}
    assert {row.attempt for row in await outbox.all()} == {2}


async def test_killed_between_post_and_record(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver, no_recording: Callable[[], None]
) -> None:
    """Deliveries that were sent and not recorded are sent again under the same id, so the receiver recognises them."""
    await outbox.endpoint(receiver.url())
    await outbox.add(5)
    now_ms = wall_ms()
    await tick(dispatchers(), now_ms)
    first = sorted(request.id for request in receiver.requests)
    no_recording()
    await tick(dispatchers(), now_ms + LEASE_MS + 1_000)
    both = sorted(request.id for request in receiver.requests)

    assert both == sorted(first * 2)
    assert len({request.body for request in receiver.requests}) == 5
    assert await outbox.statuses() == {"delivered": 5}


async def test_killed_between_the_closure_message_and_its_record(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver, no_recording: Callable[[], None]
) -> None:
    """The end still waits: a crash repeats the closure message, it does not let `session.closed` overtake it."""
    await outbox.endpoint(receiver.url())
    await outbox.add(closure_message=True)
    now_ms = wall_ms()
    await tick(dispatchers(), now_ms)
    no_recording()
    await tick(dispatchers(), now_ms + 1_000)
    await tick(dispatchers(), now_ms + LEASE_MS + 1_000)

    assert [request.type for request in receiver.requests] == [CLOSURE_MESSAGE, CLOSURE_MESSAGE, CLOSED]


async def test_two_workers_never_send_the_same_attempt(dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver) -> None:
    """While a lease holds, what one has is not there for the other."""
    for number in range(10):
        await outbox.endpoint(receiver.url(f"/{number}"))
    await outbox.add(30)
    workers = [dispatchers(delivery_concurrency=20) for _ in range(3)]
    now_ms = wall_ms()
    for round_ in range(20):
        await asyncio.gather(*(worker.run_once(now_ms + round_) for worker in workers))
    await asyncio.gather(*(worker.idle() for worker in workers))
    await tick(workers[0], now_ms + 1_000)

    assert len(receiver.requests) == 300
    assert len({request.id for request in receiver.requests}) == 300
    assert await outbox.statuses() == {"delivered": 300}


async def test_one_endpoints_limit_holds_over_all_workers(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver
) -> None:
    """Three workers together do not press harder on an endpoint than one."""
    release = Event()
    await outbox.endpoint(receiver.behave("/hook", held(release)))
    await outbox.add(60)
    workers = [dispatchers(delivery_concurrency=20) for _ in range(3)]
    now_ms = wall_ms()
    for round_ in range(5):
        await asyncio.gather(*(worker.run_once(now_ms + round_) for worker in workers))
    under_way = len(await outbox.run("SELECT id FROM deliveries WHERE leased_until IS NOT NULL"))
    release.set()
    await asyncio.gather(*(worker.idle() for worker in workers))

    assert under_way == 20 // ENDPOINT_FRACTION


async def test_only_one_of_several_workers_tries_a_dead_endpoint(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver
) -> None:
    """When the pause is over one delivery is sent, by whichever worker is first."""
    endpoint = await outbox.endpoint(receiver.behave("/hook", silence()))
    await outbox.add(20)
    await outbox.run(
        "INSERT INTO endpoint_health VALUES (CAST(:id AS uuid), 5, now() - interval '1 min', now() - interval '1 s')", id=endpoint
    )
    workers = [dispatchers() for _ in range(3)]
    now_ms = wall_ms()
    for round_ in range(5):
        await asyncio.gather(*(worker.run_once(now_ms + round_) for worker in workers))
    await receiver.until(1)

    assert len(await outbox.run("SELECT id FROM deliveries WHERE leased_until IS NOT NULL")) == 1


async def test_a_worker_that_comes_too_late_changes_nothing(
    engine: AsyncEngine, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """Paused in the middle for longer than its lease: what another has settled since stays as it is, yet both attempts show."""
    await outbox.endpoint(receiver.behave("/hook", reply(500)))
    await outbox.add()
    now_ms = wall_ms()
    (claim,) = await claim_and_die(engine, now_ms=now_ms)
    await tick(dispatcher, now_ms + LEASE_MS + 1_000)
    before = await outbox.only()
    await record(engine, [Attempt(claim, now_ms, now_ms + 60_000, Delivered(200, "late"))], jitter=lambda: 0.0)
    after = await outbox.only()

    assert after == before
    assert (after.status, after.attempt) == ("pending", 2)
    assert [(row.attempt, row.status) for row in await outbox.attempts()] == [(1, 200), (2, 500)]


async def test_a_late_record_counts_while_no_other_worker_has_begun(
    engine: AsyncEngine, outbox: Outbox, receiver: Receiver
) -> None:
    """Its lease is over, but its delivery was made: sending it again would be for nothing."""
    await outbox.endpoint(receiver.url())
    await outbox.add()
    now_ms = wall_ms()
    (claim,) = await claim_and_die(engine, now_ms=now_ms)
    await record(engine, [Attempt(claim, now_ms, now_ms + 60_000, Delivered(200))], jitter=lambda: 0.0)

    assert await outbox.statuses() == {"delivered": 1}


async def test_a_worker_that_slept_over_its_lease_does_not_send(
    dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between claim and POST for a minute: another worker may have the delivery by then."""
    await outbox.endpoint(receiver.url())
    await outbox.add()
    start = dispatcher._sending.start
    overslept: list[Claim] = []

    def sleep_then_start(claim: Claim) -> None:
        if not overslept:
            overslept.append(claim)
            dispatcher._clock_offset_ms += 60_000
        start(claim)

    monkeypatch.setattr(dispatcher._sending, "start", sleep_then_start)
    await tick(dispatcher, wall_ms())
    first, second = await outbox.attempts()

    assert len(receiver.requests) == 1
    assert first.error is not None
    assert first.status is None
    assert second.status == 200


async def test_a_stop_lets_what_is_under_way_end(dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver) -> None:
    """Within the grace nothing is cut off, and nothing new is begun."""
    release = Event()
    await outbox.endpoint(receiver.behave("/hook", held(release)))
    await outbox.add(30)
    await dispatcher.run_once(wall_ms())
    await receiver.until(10)
    stopping = asyncio.create_task(dispatcher.stop(20))
    await asyncio.sleep(0)
    release.set()
    await stopping
    await dispatcher.run_once(wall_ms() + 60_000)

    assert len(receiver.requests) == 10
    assert await outbox.statuses() == {"delivered": 10, "pending": 20}


async def test_a_stop_hands_back_what_does_not_end(dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver) -> None:
    """After the grace another worker can go on at once; no lease has to run out, and no attempt is counted."""
    await outbox.endpoint(receiver.behave("/hook", silence()))
    await outbox.add(3)
    worker = dispatchers()
    await worker.run_once(wall_ms())
    await receiver.until(3)
    await worker.stop(0.05)
    handed_back = await outbox.all()
    receiver.behave("/hook", reply())
    await tick(dispatchers(), wall_ms())

    assert {(row.status, row.attempt, row.uncounted, row.leased_until) for row in handed_back} == {("pending", 1, 1, None)}
    assert await outbox.health() == []
    assert await outbox.statuses() == {"delivered": 3}
    assert len({request.id for request in receiver.requests}) == 3


async def test_attempts_that_end_while_postgres_is_down_are_recorded_later(
    dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver, no_recording: Callable[[], None]
) -> None:
    """An attempt that was made is not made again because Postgres was restarted in the meantime."""
    await outbox.endpoint(receiver.url())
    await outbox.add(5)
    now_ms = wall_ms()
    await tick(dispatcher, now_ms)
    for round_ in range(3):
        with pytest.raises(Unavailable):
            await dispatcher.run_once(now_ms + round_)
    no_recording()
    await tick(dispatcher, now_ms + 5_000)

    assert len(receiver.requests) == 5
    assert await outbox.statuses() == {"delivered": 5}


async def test_postgres_down_is_one_clear_error_and_no_end() -> None:
    """Each tick raises the reason, and the next one tries again."""
    engine = make_engine("postgresql://unknown@127.0.0.1:1/nothing")
    dispatcher = Dispatcher(engine, Settings())
    refusals = []
    for round_ in range(2):
        with pytest.raises(Unavailable) as refused:
            await dispatcher.run_once(1_000 + round_)
        refusals.append(refused.value.detail)
    await dispatcher.stop(1)
    await engine.dispose()

    assert all("Postgres does not answer" in detail for detail in refusals)


async def test_a_refusal_is_not_reported_as_postgres_down(dispatcher: Dispatcher, outbox: Outbox) -> None:
    """The log must not point to a Postgres that works."""
    await outbox.run("ALTER TABLE endpoint_health RENAME TO elsewhere")

    with pytest.raises(ProgrammingError, match="endpoint_health"):
        await dispatcher.run_once(wall_ms())


async def test_unrecorded_attempts_are_bounded_while_postgres_is_down(
    dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver, no_recording: Callable[[], None]
) -> None:
    """Attempts that cannot be recorded take up room: no more are begun than a worker sends at once."""
    del no_recording
    for number in range(20):
        await outbox.endpoint(receiver.url(f"/{number}"))
    await outbox.add(10)
    now_ms = wall_ms()
    await tick(dispatcher, now_ms)
    for round_ in range(3):
        with pytest.raises(Unavailable):
            await dispatcher.run_once(now_ms + round_)

    assert len(receiver.requests) <= 50
    assert len(receiver.requests) == len(dispatcher._recorder)


async def test_an_error_while_recording_does_not_end_the_recording(
    dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error of any kind the attempts wait, the next tick records them, and what ends later is recorded too."""

    async def fail(*_: object, **__: object) -> None:
        msg = "a mistake of ours"
        raise ValueError(msg)

    await outbox.endpoint(receiver.url())
    await outbox.add()
    now_ms = wall_ms()
    monkeypatch.setattr(recorder_module, "record", fail)
    await tick(dispatcher, now_ms)
    waiting = await outbox.statuses()
    monkeypatch.setattr(recorder_module, "record", record)
    await outbox.add()
    await tick(dispatcher, now_ms + 1_000)

    assert waiting == {"pending": 1}
    assert await outbox.statuses() == {"delivered": 2}
    assert len(receiver.requests) == 2
