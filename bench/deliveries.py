"""How many webhooks a second one worker sends to receivers on loopback: claimed, signed, posted, recorded."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter, process_time

from msgspec import Struct
from sqlalchemy import text

from app.ids import new_webhook_secret
from app.resources import Resources
from app.worker import Worker
from bench.installation import BOT

_POLL_S = 0.02
_BOT = text("INSERT INTO bots (id, name) VALUES (:bot, :bot)")
_CLEAR = (text("TRUNCATE deliveries CASCADE"), text("DELETE FROM endpoint_health"), text("DELETE FROM endpoints"))
_ENDPOINTS = text("""
    INSERT INTO endpoints (id, bot_id, url, events, secret)
    SELECT gen_random_uuid(), :bot, :url, '{session.closed}', :secret FROM generate_series(1, :count)
""")
_DELIVERIES = text("""
    INSERT INTO deliveries (id, endpoint_id, bot_id, session_id, event, body)
    SELECT gen_random_uuid(), e.id, :bot, gen_random_uuid(), 'session.closed', :body
    FROM endpoints e, generate_series(1, :each) WHERE e.url = :url
""")
_DELIVERED = text(
    "SELECT count(*) FROM deliveries d JOIN endpoints e ON e.id = d.endpoint_id WHERE d.status = 'delivered' AND e.url = :url"
)


class Load(Struct, frozen=True):
    """Endpoints whose receiver waits `wait_ms`, with `each` deliveries each."""

    endpoints: int
    each: int
    wait_ms: int = 0


# The first load of each is measured; what else is there are its neighbours.
LOADS = {
    "10 endpoints": [Load(10, 500)],
    "one endpoint": [Load(1, 4_000)],
    "one endpoint, 100 ms": [Load(1, 2_000, 100)],
    "one endpoint, 300 ms": [Load(1, 1_000, 300)],
    "900 endpoints": [Load(900, 5)],
    "900 endpoints beside 100 of 3 s": [Load(900, 5), Load(100, 5, 3_000)],
}


async def measure(resources: Resources) -> dict[str, tuple[float, float]]:
    """Of the first load of each case, until all of it is recorded as delivered: deliveries a second, CPU ms of each."""
    async with resources.engine.begin() as conn:
        await conn.execute(_BOT, {"bot": BOT})
    async with _receiver() as port:
        return {name: await _measure(resources, loads, port=port) for name, loads in LOADS.items()}


def show(measured: dict[str, tuple[float, float]]) -> None:
    print("\nDispatcher: webhooks of 1 KB to receivers on loopback, one worker")
    for name, (rate, cpu_ms) in measured.items():
        print(f"  {name:<35} {rate:>7,.0f} deliveries/s, {cpu_ms:.2f} ms of CPU each")


@asynccontextmanager
async def _receiver() -> AsyncIterator[int]:
    sink = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.sink", stdout=asyncio.subprocess.PIPE)
    try:
        assert sink.stdout is not None
        yield int(await sink.stdout.readline())
    finally:
        sink.terminate()
        await sink.wait()


async def _measure(resources: Resources, loads: Sequence[Load], *, port: int) -> tuple[float, float]:
    await _enqueue(resources, loads, port=port)
    worker, first = Worker(resources), loads[0]
    expected = first.endpoints * first.each
    began, began_cpu = perf_counter(), process_time()
    worker.dispatcher.start()
    await worker.dispatcher.run_once(resources.clock.now_ms())
    while await _delivered(resources, _url(first, port)) < expected:  # noqa: ASYNC110 - it waits for rows
        await asyncio.sleep(_POLL_S)
    seconds, cpu_s = perf_counter() - began, process_time() - began_cpu
    await worker.stop()
    return expected / seconds, 1000 * cpu_s / expected


async def _delivered(resources: Resources, url: str) -> int:
    async with resources.engine.connect() as conn:
        return int(await conn.scalar(_DELIVERED, {"url": url}) or 0)


async def _enqueue(resources: Resources, loads: Sequence[Load], *, port: int) -> None:
    async with resources.engine.begin() as conn:
        for statement in _CLEAR:
            await conn.execute(statement)
        for load in loads:
            url, secret = _url(load, port), new_webhook_secret()
            await conn.execute(_ENDPOINTS, {"bot": BOT, "url": url, "secret": secret, "count": load.endpoints})
            body = '{"text":"%s"}' % ("x" * 1_000)
            await conn.execute(_DELIVERIES, {"bot": BOT, "body": body, "each": load.each, "url": url})


def _url(load: Load, port: int) -> str:
    return f"http://127.0.0.1:{port}/{load.wait_ms}"
