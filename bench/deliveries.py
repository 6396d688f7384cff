"""How many webhooks a second one worker sends to receivers on loopback: claimed, signed, posted, recorded."""

import asyncio
import sys
from time import perf_counter

from sqlalchemy import text

from app.ids import new_webhook_secret
from app.resources import Resources
from app.worker import Worker
from bench.installation import BOT

DELIVERIES = 5_000
# One endpoint may have only a part of a worker's room, so several make it full.
ENDPOINTS = 10

_BOT = text("INSERT INTO bots (id, name) VALUES (:bot, :bot)")
_ENDPOINTS = text("""
    INSERT INTO endpoints (id, bot_id, url, events, secret)
    SELECT gen_random_uuid(), :bot, :url, '{session.closed}', :secret FROM generate_series(1, :count)
""")
_DELIVERIES = text("""
    INSERT INTO deliveries (id, endpoint_id, bot_id, session_id, event, body)
    SELECT gen_random_uuid(), e.id, :bot, gen_random_uuid(), 'session.closed', :body
    FROM endpoints e, generate_series(1, :each)
""")
_DELIVERED = text("SELECT count(*) FROM deliveries WHERE status = 'delivered'")


async def measure(resources: Resources) -> float:
    """Deliveries a second. Checks that all of them were delivered."""
    sink = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.sink", stdout=asyncio.subprocess.PIPE)
    try:
        assert sink.stdout is not None
        await _enqueue(resources, port=int(await sink.stdout.readline()))
        worker = Worker(resources)
        began = perf_counter()
        worker.dispatcher.start()
        await worker.dispatcher.run_once(resources.clock.now_ms())
        await worker.dispatcher.idle()
        seconds = perf_counter() - began
        await worker.stop()
    finally:
        sink.terminate()
        await sink.wait()
    async with resources.engine.connect() as conn:
        assert await conn.scalar(_DELIVERED) == DELIVERIES
    return DELIVERIES / seconds


def show(rate: float) -> None:
    print(f"\nDispatcher: {DELIVERIES:,} webhooks of 1 KB to {ENDPOINTS} endpoints on loopback, one worker")
    print(f"  {rate:,.0f} deliveries/s")


async def _enqueue(resources: Resources, *, port: int) -> None:
    url = f"http://127.0.0.1:{port}/"
    async with resources.engine.begin() as conn:
        await conn.execute(_BOT, {"bot": BOT})
        await conn.execute(_ENDPOINTS, {"bot": BOT, "url": url, "secret": new_webhook_secret(), "count": ENDPOINTS})
        each = DELIVERIES // ENDPOINTS
        await conn.execute(_DELIVERIES, {"bot": BOT, "body": '{"text":"%s"}' % ("x" * 1_000), "each": each})
