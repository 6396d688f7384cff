"""One bad endpoint delays no other, however it fails and however many deliveries it has."""

import asyncio
import resource

import pytest

from app.clock import wall_ms
from app.delivery.dispatcher import ENDPOINT_FRACTION
from tests.delivery.conftest import DispatcherMaker
from tests.delivery.outbox_rows import Outbox
from tests.receiver import Receiver, drip, flood, gzip_bomb, redirect, silence

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


async def test_the_first_delivery_of_each_endpoint_goes_before_any_backlog(
    dispatchers: DispatcherMaker, outbox: Outbox, receiver: Receiver
) -> None:
    """An endpoint with 2,000 waiting since long ago does not push back those with one each."""
    await outbox.endpoint(receiver.url("/backlog"), bot="busy")
    await outbox.add(2_000, bot="busy")
    await outbox.run("UPDATE deliveries SET next_attempt_at = next_attempt_at - interval '1 hour'")
    for number in range(40):
        await outbox.endpoint(receiver.url(f"/one/{number}"))
    await outbox.add(1)
    worker = dispatchers(delivery_concurrency=CONCURRENCY)
    await worker.run_once(wall_ms())
    await receiver.until(200)
    first = [request.path for request in receiver.requests[:200]]
    await worker.stop(20)

    assert {path for path in first if path.startswith("/one/")} == {f"/one/{number}" for number in range(40)}
    assert max(first.index(f"/one/{number}") for number in range(40)) < 2 * CONCURRENCY


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
