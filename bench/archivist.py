"""How many closed sessions a second, with two messages each, go from the event streams to Postgres.

The contestant is COPY of the same rows into tables with the same columns, indexes and checks, on one connection.
"""

import asyncio
from io import BytesIO
from time import perf_counter, process_time

from msgspec import Struct
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


class Archived(Struct, frozen=True):
    """Sessions a second, of one worker and of COPY, and the worker's CPU time for each in µs."""

    rate: float
    copied: float
    cpu_us: float


async def measure(resources: Resources) -> Archived:
    """Archive and then copy the same sessions. Checks that all of them arrived."""
    await _close_many(resources)
    worker = Worker(resources)
    began, cpu = perf_counter(), process_time()
    await worker.archivist.run_once()
    seconds, cpu_s = perf_counter() - began, process_time() - cpu
    await worker.stop()
    async with resources.engine.connect() as conn:
        sessions = await conn.scalar(text("SELECT count(*) FROM sessions"))
        messages = await conn.scalar(text("SELECT count(*) FROM messages"))
    assert (sessions, messages) == (SESSIONS, 2 * SESSIONS)
    return Archived(SESSIONS / seconds, SESSIONS / await _copy(resources), cpu_s / SESSIONS * 1e6)


def show(archived: Archived) -> None:
    print(f"\nArchivist: {SESSIONS:,} closed sessions of 2 messages, one worker")
    print(f"  {archived.rate:,.0f} sessions/s, {2 * archived.rate:,.0f} messages/s, {archived.cpu_us:.0f} µs of our CPU each")
    print(f"  {archived.rate / archived.copied:.2f} of COPY of the same rows ({archived.copied:,.0f} sessions/s)")


async def _copy(resources: Resources) -> float:
    """Seconds to copy the archived rows into tables of the same form."""
    async with resources.engine.begin() as conn:
        raw = (await conn.get_raw_connection()).driver_connection
        assert raw is not None
        rows = {}
        for table in ("sessions", "messages"):
            await conn.execute(text(f"CREATE TABLE copied_{table} (LIKE {table} INCLUDING ALL)"))
            rows[table] = BytesIO()
            await raw.copy_from_query(f"SELECT * FROM {table}", output=rows[table], format="binary")  # noqa: S608 - a constant
        began = perf_counter()
        for table, copied in rows.items():
            copied.seek(0)
            await raw.copy_to_table(f"copied_{table}", source=copied, format="binary")
        return perf_counter() - began


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
