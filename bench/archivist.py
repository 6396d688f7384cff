"""How many closed sessions a second, with two messages each, go from the event streams to Postgres."""

import asyncio
from time import perf_counter

from sqlalchemy import text

from app.domain.entry import Entry
from app.domain.instants import HOUR_MS
from app.domain.records import Receive
from app.domain.strand import Strand
from app.resources import Resources
from app.worker import Worker
from bench.installation import SANDBOX

SESSIONS = 20_000
A_WAVE = 4_000
OPENED_AT_MS = 1_790_000_000_000


async def measure(resources: Resources) -> float:
    """Sessions a second, of one worker. Checks that all of them arrived."""
    await _close_many(resources)
    worker = Worker(resources)
    began = perf_counter()
    await worker.archivist.run_once()
    seconds = perf_counter() - began
    await worker.stop()
    async with resources.engine.connect() as conn:
        sessions = await conn.scalar(text("SELECT count(*) FROM sessions"))
        messages = await conn.scalar(text("SELECT count(*) FROM messages"))
    assert (sessions, messages) == (SESSIONS, 2 * SESSIONS)
    return SESSIONS / seconds


def show(rate: float) -> None:
    print(f"\nArchivist: {SESSIONS:,} closed sessions of 2 messages, one worker")
    print(f"  {rate:,.0f} sessions/s, {2 * rate:,.0f} messages/s")


async def _close_many(resources: Resources) -> None:
    for first in range(0, SESSIONS, A_WAVE):
        users = [f"user-{number}" for number in range(first, first + A_WAVE)]
        for role in ("user", "bot"):
            await asyncio.gather(
                *[
                    resources.ledger.submit(
                        Strand(SANDBOX, f"web:{user}"),
                        Receive(Entry(user_id=user, role=role, text="hello, where is my order?"), f"{user}-{role}"),
                        at_ms=OPENED_AT_MS,
                    )
                    for user in users
                ]
            )
    await resources.sweep.run_bot(SANDBOX, OPENED_AT_MS + HOUR_MS)
