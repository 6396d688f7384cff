"""One bad endpoint delays no other, however it fails and however many deliveries it has."""

import asyncio
import resource
from threading import Event

import pytest

from app.clock import wall_ms
from app.delivery.dispatcher import ENDPOINT_FRACTION
from app.delivery.retry import PromptEndpoints
from tests.delivery.conftest import DispatcherMaker
from tests.delivery.outbox_rows import Outbox
from tests.receiver import Receiver, drip, flood, gzip_bomb, held, in_turn, redirect, reply, silence

CONCURRENCY = 50
PER_ENDPOINT = 30


async def test_no_endpoint_starves_beside_bad_ones(dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver) -> None:
    """Of 100 endpoints one never answers, one drips, one sends without end, one a bomb, one a redirect; 30 wait for each.

    The other 95 get everything while the first slow ones are still being waited for, and memory stays where it was.
    """
    bad = {
        "/dead": silence(),
        "/drip": drip(),
        "/endless": flood(),
        "/bomb": gzip_bomb(),
        "/redirect": redirect(receiver.url("/elsewhere")),
    }
    for path, behaviour in bad.items():
        await outbox.endpoint(receiver.behave(path, behaviour))
    for number in range(95):
        await outbox.endpoint(receiver.url(f"/good/{number}"))
    await outbox.add(PER_ENDPOINT)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    worker = dispatchers(delivery_concurrency=CONCURRENCY, delivery_timeout_s=60)
    await worker.run_once(wall_ms())
    good = 95 * PER_ENDPOINT
    share = CONCURRENCY // ENDPOINT_FRACTION
    async with asyncio.timeout(60):
        while sum(request.path.startswith("/good/") for request in list(receiver.requests)) < good:
            await asyncio.sleep(0.02)
        while min(len(receiver.at(path)) for path in ("/dead", "/drip")) < share:
            await asyncio.sleep(0.02)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024

    # The slow ones' first attempts are still in flight: the others did not wait for their deadline.
    assert {path: len(receiver.at(path)) for path in ("/dead", "/drip")} == {"/dead": share, "/drip": share}
    assert receiver.at("/elsewhere") == []
    assert grown_mb < 50


@pytest.mark.parametrize("lent", (0, 100))
async def test_the_first_delivery_of_each_endpoint_goes_before_any_backlog(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver, lent: int
) -> None:
    """An endpoint with 2,000 waiting since long ago does not push back those with one each."""
    await outbox.endpoint(receiver.url("/backlog"), bot="busy")
    await outbox.add(2_000, bot="busy")
    await outbox.run("UPDATE deliveries SET next_attempt_at = next_attempt_at - interval '1 hour'")
    for number in range(40):
        await outbox.endpoint(receiver.url(f"/one/{number}"))
    await outbox.add(1)
    worker = dispatchers(delivery_concurrency=CONCURRENCY, delivery_lent_concurrency=lent)
    await worker.run_once(wall_ms())
    await receiver.until(300)
    first = [request.path for request in receiver.requests[:300]]
    await worker.stop(20)

    assert {path for path in first if path.startswith("/one/")} == {f"/one/{number}" for number in range(40)}
    assert max(first.index(f"/one/{number}") for number in range(40)) < 2 * CONCURRENCY + lent


@pytest.mark.parametrize("attempt", (32_767, 2_147_483_647))
async def test_a_delivery_that_cannot_be_claimed_stops_no_other(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver, attempt: int
) -> None:
    """However far its attempts were counted, and though it has waited longest where one is sent at a time."""
    await outbox.endpoint(receiver.url("/worn"), bot="worn")
    await outbox.add(bot="worn")
    await outbox.run(
        "UPDATE deliveries SET attempt = :attempt, uncounted = :attempt, next_attempt_at = now() - interval '1 h'",
        attempt=attempt,
    )
    await outbox.endpoint(receiver.url("/well"), bot="well")
    await outbox.add(3, bot="well")
    worker = dispatchers(delivery_concurrency=1)
    await worker.run_once(wall_ms())
    await worker.idle()

    assert len(receiver.at("/well")) == 3
    assert len(receiver.at("/worn")) == (1 if attempt == 32_767 else 0)


async def test_more_bad_endpoints_than_senders_leave_room_in_the_end(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver
) -> None:
    """Where 30 endpoints hang and 20 senders serve them all, their breakers open and the good one gets through."""
    for number in range(30):
        await outbox.endpoint(receiver.behave(f"/dead/{number}", silence()), bot="bad")
    await outbox.add(20, bot="bad")
    await outbox.endpoint(receiver.url("/good"))
    await outbox.add(20)
    worker = dispatchers(delivery_concurrency=20, delivery_timeout_s=0.5)
    now_ms = wall_ms()
    await worker.run_once(now_ms)
    async with asyncio.timeout(60):
        await worker.idle()
    sent = len(receiver.requests)
    await worker.run_once(now_ms + 3_000)
    await worker.idle()
    dead = [sum(request.path == f"/dead/{number}" for request in receiver.requests) for number in range(30)]

    assert len(receiver.at("/good")) == 20
    assert sent <= 30 * 20 + 20
    assert max(dead) <= 9  # 4 at once, then 2, 1, 1, 1: then its breaker is open


async def in_flight(receiver: Receiver, *paths: str, least: int) -> list[int]:
    """How many requests of each path are answered by nothing, once there are `least` of them in all."""
    async with asyncio.timeout(20):
        while sum(len(receiver.at(path)) for path in paths) < least:
            await asyncio.sleep(0.02)
    return [len(receiver.at(path)) for path in paths]


async def test_senders_are_lent_to_an_endpoint_that_answers_and_not_to_one_that_does_not(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver
) -> None:
    """Of two with 60 each, the one that has answered has three quarters of 40 in flight, the other a fifth of 20."""
    release = Event()
    await outbox.endpoint(receiver.behave("/prompt", in_turn(reply(), held(release))), bot="prompt")
    await outbox.endpoint(receiver.behave("/new", held(release)), bot="new")
    await outbox.add(1, bot="prompt")
    worker = dispatchers(delivery_concurrency=20, delivery_lent_concurrency=40)
    await worker.run_once(wall_ms())
    await worker.idle()
    await outbox.add(60, bot="prompt")
    await outbox.add(60, bot="new")
    await worker.run_once(wall_ms())
    seen = await in_flight(receiver, "/prompt", "/new", least=1 + 30 + 4)
    release.set()
    async with asyncio.timeout(60):
        await worker.idle()

    assert seen == [1 + 30, 4]
    assert await outbox.statuses() == {"delivered": 121}


async def test_the_endpoints_of_one_bot_leave_senders_to_another(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver
) -> None:
    """Thirty endpoints of one bot hang; they hold 15 of 20 senders, and another bot's endpoint is served at once."""
    release = Event()
    for number in range(30):
        await outbox.endpoint(receiver.behave(f"/hangs/{number}", held(release)), bot="bad")
    await outbox.add(2, bot="bad")
    worker = dispatchers(delivery_concurrency=20)
    await worker.run_once(wall_ms())
    seen = await in_flight(receiver, *[f"/hangs/{number}" for number in range(30)], least=15)
    await outbox.endpoint(receiver.url("/good"), bot="good")
    await outbox.add(10, bot="good")
    await worker.run_once(wall_ms())
    async with asyncio.timeout(20):
        while len(receiver.at("/good")) < 10:
            await asyncio.sleep(0.02)
    release.set()

    assert sum(seen) == 15


@pytest.mark.parametrize("answers", ([(1_500, True)], [(20, True), (20, False)], [(20, True)] * 3 + [(9_000, True)]))
def test_an_endpoint_that_is_slow_or_fails_is_not_prompt(answers: list[tuple[int, bool]]) -> None:
    """Slow at first, failed last, slow at last; after some prompt answers it is prompt again, unless a send waits for it."""
    endpoints = PromptEndpoints()
    for duration_ms, delivered in answers:
        endpoints.count("one", duration_ms, delivered=delivered)
    before = endpoints.prompt(waiting=())
    for _ in range(5):
        endpoints.count("one", 20, delivered=True)

    assert (before, endpoints.prompt(waiting=()), endpoints.prompt(waiting={"one"})) == ([], ["one"], [])
