"""Clients that hold what they should not: memory and connections come back within the deadlines, and others are answered."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Any

import psutil
import pytest
from msgspec import Struct, json

from tests.faults.conftest import full
from tests.faults.installation import Installation

DEADLINES: dict[str, Any] = {"request_head_timeout_s": 3, "request_body_timeout_s": 3, "reply_timeout_s": 3}
BACK_WITHIN_S = 30.0
GROWTH_BYTES = 100 << 20
LEFT_BYTES = 50 << 20
FLOOR_S = 0.05  # below this a difference is the machine's
HEAD = "POST /v1/bots/shop/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
ASKS = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n"
ENTRY = json.encode({"user_id": "ann", "role": "user", "text": "hello"})


class Watched(Struct):
    """Measurements of a process and of an honest caller: bytes of memory, seconds of each answer."""

    memory: list[int] = []
    answers_s: list[float] = []

    @property
    def p99_s(self) -> float:
        return quantiles(self.answers_s, n=100)[-1]


def hostile_bodies() -> list[bytes]:
    """Of some hundred kilobytes each, and of many megabytes once a careless reader has made a value of them."""
    long_key = json.encode({"user_id": "a", "role": "user", "context": {"k" * 350_000: [0] * 175_000}})
    nested = b'{"user_id": "a", "role": "user", "metadata": {"x": [' + b",".join([b"[" * 7 + b"]" * 7] * 60_000) + b"]}}"
    keys = json.encode({"user_id": "a", "role": "user", "context": {f"k{number}": 0 for number in range(60_000)}})
    unknown = json.encode({f"field{number}": number for number in range(50_000)})
    return [long_key, nested, keys, unknown, b"[" * 900_000, b'["' + b"\\u0000" * 150_000 + b'"]']


@asynccontextmanager
async def watched(stage: Installation, pid: int) -> AsyncIterator[Watched]:
    """Post an honest entry every 20 ms, and look at the process's memory."""
    seen, process = Watched(), psutil.Process(pid)
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        async with stage.caller() as caller:
            while True:
                began_s = loop.time()
                answer = await caller.post("/v1/bots/shop/messages", ENTRY)
                seen.answers_s.append(loop.time() - began_s)
                assert answer.status == 200, answer.body
                seen.memory.append(process.memory_info().rss)
                await asyncio.sleep(0.02)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()


def connect(stage: Installation, request: bytes, *, half_closed: bool = False) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", stage.port))
    client.sendall(request)
    if half_closed:
        client.shutdown(socket.SHUT_WR)
    return client


def slow_clients(stage: Installation, count: int) -> list[socket.socket]:
    """Of each kind a fifth: half a head, half a body without a key and with one, an answer that is not read, half closed."""
    with_key = f"{HEAD}authorization: Bearer {stage.key}\r\ncontent-length: 900000\r\n\r\n".encode() + b" " * 60_000
    without = f"{HEAD}content-length: 900000\r\n\r\n".encode() + b" " * 60_000
    kinds = [
        (HEAD.encode(), False),
        (without, False),
        (with_key, False),
        (ASKS.encode() * 20, False),
        (ASKS.encode() * 5, True),
    ]
    return [connect(stage, request, half_closed=half) for request, half in kinds * (count // len(kinds))]


async def post_hostile(stage: Installation, count: int) -> set[int]:
    """The statuses of so many hostile bodies, six at once."""
    bodies = hostile_bodies()
    left = list(range(count))
    statuses: set[int] = set()

    async def post_some() -> None:
        async with stage.caller() as caller:
            while left:
                body = bodies[left.pop() % len(bodies)]
                statuses.add((await caller.post("/v1/bots/shop/messages", body)).status)

    await asyncio.gather(*[post_some() for _ in range(6)])
    return statuses


@pytest.mark.parametrize(
    ("connections", "bodies", "times"), (pytest.param(200, 24, math.inf, id="short"), full(2_000, 300, 2, timeout_s=300))
)
async def test_slow_and_hostile_clients_hold_little_and_give_it_back(
    stage: Installation, connections: int, bodies: int, *, times: float
) -> None:
    """The process grows by 100 MB at most and is within 50 MB soon; an honest caller waits `times` as long as before at most."""
    await stage.make_bot("shop", clock=None, subscribed=False)
    process = await stage.start("api", **DEADLINES)
    async with stage.caller() as caller:
        await caller.get("/openapi.json")  # made once
    async with watched(stage, process.pid) as before:
        await asyncio.sleep(3)
    async with watched(stage, process.pid) as during:
        clients = await asyncio.to_thread(slow_clients, stage, connections)
        statuses = await post_hostile(stage, bodies)
        await asyncio.sleep(4)
    async with watched(stage, process.pid) as after, asyncio.timeout(BACK_WITHIN_S):
        while len(psutil.Process(process.pid).net_connections()) > 10 or not after.memory:
            await asyncio.sleep(0.1)
        while after.memory[-1] - max(before.memory) > LEFT_BYTES:
            await asyncio.sleep(0.1)
    for client in clients:
        client.close()

    # A key whose slow clients hold its share of bodies gets 503.
    assert {422} <= statuses <= {413, 422, 503}
    assert max(during.memory) - max(before.memory) <= GROWTH_BYTES
    assert during.p99_s <= max(times * before.p99_s, FLOOR_S)
    assert stage.traces() == []
