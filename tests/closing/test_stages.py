"""A stage that has done something starts the next one; its tick is the fallback."""

import asyncio

import pytest
from sqlalchemy import text

from app.archive.tables import instant
from app.domain.entry import Entry
from app.domain.records import Receive
from app.domain.strand import Strand
from app.resources import Resources
from app.worker import Worker
from tests.closing.conftest import SaveBot


async def test_what_a_sweep_closes_is_archived_without_a_tick(resources: Resources, worker: Worker, save_bot: SaveBot) -> None:
    """The scheduler does not run: one sweep is all that is started."""
    await save_bot("bot", version=1, minutes=5)
    long_ago_ms = resources.clock.now_ms() - 3_600_000
    entry = Receive(Entry(user_id="ann", role="user", text="hello"), "m1")
    await resources.ledger.submit(Strand("bot", "web:ann"), entry, at_ms=long_ago_ms)

    await worker.run_job("heartbeat")
    await worker.run_job("sweep")

    await ended(worker)
    async with resources.engine.connect() as conn:
        archived = await conn.scalar(text("SELECT count(*) FROM sessions"))

    assert archived == 1


async def test_a_deadline_within_the_tick_is_swept_when_it_comes(resources: Resources, worker: Worker, save_bot: SaveBot) -> None:
    """The scheduler does not run: a sweep that finds nothing due starts the next one, at the deadline and not before."""
    await save_bot("bot", version=1, minutes=5)
    deadline_ms = resources.clock.now_ms() + 200
    entry = Receive(Entry(user_id="ann", role="user", text="hello"), "m1")
    await resources.ledger.submit(Strand("bot", "web:ann"), entry, at_ms=deadline_ms - 300_000)
    await worker.run_job("heartbeat")

    await worker.run_job("sweep")
    before = await resources.live.count("bot")
    async with asyncio.timeout(20):
        while await resources.live.count("bot"):
            await asyncio.sleep(0.01)
    await ended(worker)

    assert before == 1
    async with resources.engine.connect() as conn:
        closed_at = await conn.scalar(text("SELECT closed_at FROM sessions"))
    assert closed_at == instant(deadline_ms)


async def test_deadlines_beyond_the_tick_start_no_sweep(resources: Resources, worker: Worker, save_bot: SaveBot) -> None:
    """The tick finds them soon enough, so an idle worker has no timer."""
    await save_bot("bot", version=1, minutes=5)
    await resources.ledger.submit(Strand("bot", "web:ann"), Receive(Entry(user_id="ann", role="user", text="hello"), "m1"))

    await worker.run_job("sweep")

    assert worker._next_sweep is None


@pytest.mark.parametrize(("done", "ran"), ((1, ["sweep", "archive", "deliver"]), (0, ["sweep"])))
async def test_next_stage_starts_only_if_there_is_something_for_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, done: int, ran: list[str]
) -> None:
    """An empty sweep costs no look at the streams or at the outbox."""
    seen = stages(worker, monkeypatch, done=done)

    await worker.run_job("sweep")
    await ended(worker)

    assert seen == ran


async def test_stage_that_is_running_runs_once_more(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have missed what the sweep has just closed. A tick meanwhile starts nothing."""
    release = asyncio.Event()
    seen = stages(worker, monkeypatch, done=1, archive_waits_for=release)

    running = asyncio.create_task(worker.run_job("archive"))
    await asyncio.sleep(0)
    await worker.run_job("archive")
    await worker.run_job("sweep")
    await worker.run_job("sweep")
    release.set()
    await running
    await ended(worker)

    assert seen.count("archive") == 2
    assert seen.count("sweep") == 2


async def ended(worker: Worker) -> None:
    """Wait for the jobs that were started, and for those that they start."""
    while others := worker._running - {asyncio.current_task()}:
        await asyncio.wait(others, timeout=20)


def stages(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, *, done: int, archive_waits_for: asyncio.Event | None = None
) -> list[str]:
    """The names of the jobs that run from now on, each of which does `done` things."""
    seen: list[str] = []

    async def run(name: str) -> int:
        seen.append(name)
        if name == "archive" and archive_waits_for is not None:
            await archive_waits_for.wait()
        return done

    names = ("sweep", "archive", "deliver")
    monkeypatch.setattr(worker, "jobs", lambda: {name: (lambda name=name: run(name), 1_000) for name in names})
    return seen
