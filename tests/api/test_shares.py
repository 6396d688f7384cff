"""No owner can hold all of a process: others find room at once, and what is given back goes to the one that holds least."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from app.errors import Unavailable
from app.resources import Resources
from app.settings import Settings
from app.shares import OWNER, LoopShares, Shares
from tests.api.conftest import Client, ClientMaker

HELLO = {"user_id": "ann", "role": "user", "text": "hi"}
SLOW = text("SELECT pg_sleep(0.7)")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"bodies_max_bytes": 1_000_000, "state_cache_bytes": 0, "max_open_sessions": 3})


async def slowly(resources: Resources, owner: str) -> str:
    """Hold a connection for a while, as this owner."""
    OWNER.set(owner)
    async with resources.engine.connect() as conn:
        await conn.execute(SLOW)
    return owner


async def finished(*tasks: asyncio.Task[str]) -> list[str]:
    return [await task for task in asyncio.as_completed(tasks)]


async def test_what_is_given_back_goes_to_the_owner_that_holds_least() -> None:
    """One holds two and wants two more; the other came last, holds nothing, and is first."""
    shares = Shares(3, most_of_one=3)
    for owner in ("busy", "busy", "third"):
        assert shares.try_take(owner)
    order: list[str] = []

    async def want(owner: str) -> None:
        await shares.take(owner, wait_s=10)
        order.append(owner)

    waiting = [asyncio.create_task(want(owner)) for owner in ("busy", "busy", "other")]
    await asyncio.sleep(0)
    for _ in range(3):
        shares.give_back("busy" if len(order) < 2 else "other")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)

    assert order[0] == "other"


async def test_a_wait_without_room_ends_and_leaves_nothing_behind() -> None:
    """The room is there for others afterwards."""
    shares = Shares(1, most_of_one=1)
    assert shares.try_take("one")

    with pytest.raises(Unavailable):
        await shares.take("other", wait_s=0.01)
    shares.give_back("one")

    assert shares.try_take("other")


async def test_slow_queries_of_one_key_leave_a_connection_to_others(resources: Resources) -> None:
    """Eight at once, and the one of another key that comes last is not behind them."""
    busy = [asyncio.create_task(slowly(resources, "busy")) for _ in range(8)]
    await asyncio.sleep(0.2)
    other = asyncio.create_task(slowly(resources, "other"))

    assert "other" in (await finished(*busy, other))[:5]


async def test_admins_and_probes_have_connections_of_their_own(admin: Client, resources: Resources) -> None:
    """Also while every reader's connection is held."""
    release, holding = asyncio.Event(), asyncio.Semaphore(0)

    async def hold(owner: str) -> None:
        OWNER.set(owner)
        async with resources.engine.connect():
            holding.release()
            await release.wait()

    held = [asyncio.create_task(hold(f"reader{number}")) for number in range(5)]
    for _ in held:
        await holding.acquire()

    assert (await admin.ok("GET", "/readyz"))["checks"]["postgres"] == "ok"
    assert await admin.ok("GET", "/v1/bots") == {"bots": [], "next": None}
    release.set()
    await asyncio.gather(*held)


async def test_bodies_of_one_key_leave_room_to_others(resources: Resources, clients: ClientMaker, admin: Client) -> None:
    """A key that holds its share of bytes is refused until its requests have ended; another key is not."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    busy, other = await clients("ingest"), await clients("ingest")
    release, sent = asyncio.Event(), asyncio.Semaphore(0)

    async def begun() -> AsyncIterator[bytes]:
        yield b" " * 300_000
        sent.release()
        await release.wait()

    path, long = "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "metadata": {"x": "y" * 200_000}}
    slow = [asyncio.create_task(busy.post(path, content=begun())) for _ in range(2)]
    for _ in slow:
        await sent.acquire()
    refused, answered = await busy.post(path, json=long), await other.post(path, json=long)
    release.set()
    await asyncio.gather(*slow)

    assert (refused.status_code, refused.headers["retry-after"], answered.status_code) == (503, "1", 200)
    assert resources.bodies.try_take("all", 750_000)


async def test_large_bodies_of_one_key_are_decoded_one_by_one(clients: ClientMaker, admin: Client) -> None:
    """A request that comes after six of them is answered when two have been decoded at most."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    busy, other = await clients("ingest"), await clients("ingest")
    path, order = "/v1/bots/shop/messages", list[str]()

    async def post(client: Client, body: bytes, name: str) -> None:
        answer = await client.post(path, content=body, headers={"content-type": "application/json"})
        order.append(f"{name} {answer.status_code}")

    large = [asyncio.create_task(post(busy, b"[" * 120_000, "large")) for _ in range(6)]
    small = asyncio.create_task(post(other, b"{}", "small"))
    await asyncio.gather(*large, small)

    assert sorted(order) == ["large 422"] * 6 + ["small 422"]
    assert order.index("small 422") <= 2


async def test_owners_alternate_and_each_iteration_has_room_for_some() -> None:
    """Ten tasks of one owner and then one of another, two in an iteration: the other one is among the first four."""
    shares, order, at = LoopShares(2), list[str](), list[int]()
    loop, iteration = asyncio.get_running_loop(), 0

    def count() -> None:
        nonlocal iteration
        iteration += 1
        if len(order) < 11:
            loop.call_soon(count)

    async def work(owner: str) -> None:
        await shares.wait(owner)
        order.append(owner)
        at.append(iteration)

    count()
    await asyncio.gather(*[work("busy") for _ in range(10)], work("other"))

    assert order.index("other") < 4
    assert max(map(at.count, at)) <= 2


async def test_a_bot_opens_no_more_sessions_than_it_may(admin: Client, resources: Resources) -> None:
    """Of five users in a batch three open one; open sessions go on, may restart, and one that ends makes room.

    No state is cached, as if another process had opened them.
    """
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    path = "/v1/bots/shop/messages"
    entries = [HELLO | {"user_id": f"user-{number}"} for number in range(5)]

    batch = (await admin.post(f"{path}/batch", json=entries)).json()["answers"]
    refused = [answer["error"] for answer in batch if "error" in answer]
    opened = [entry for entry, answer in zip(entries, batch, strict=True) if "error" not in answer]
    goes_on = await admin.post(path, json=opened[0])
    restarts = await admin.post(path, json=opened[0] | {"refresh": True})
    await admin.post(path, json=opened[2] | {"type": "session.end"})
    async with asyncio.timeout(10):
        while (late := await admin.post(path, json=HELLO | {"user_id": "late"})).status_code != 200:
            await asyncio.sleep(0.1)

    assert [(error["code"], error["status"]) for error in refused] == [("rate_limited", 429)] * 2
    assert (goes_on.json()["session"], restarts.json()["session"]) == ("continued", "opened")
    assert late.json()["session"] == "opened"
    assert await resources.live.count("shop") == 3
