"""Postgres stopped, Redis frozen: for minutes, under load."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import close_all, unaccounted, until, until_archived
from tests.faults.falling_due import open_many
from tests.faults.ground import Ground
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log, Said, back_after_s, chatter

PACE_S = 0.02
ANSWER_S = 2.5
BACK_S = 5.0
DRAINED_S = 30.0
MEGABYTE = 1 << 20


@pytest.mark.parametrize("seconds", (pytest.param(5, id="short"), full(120, timeout_s=400)))
async def test_postgres_stopped_under_load(stage: Ground, tabulate: Tabulate, seconds: int) -> None:
    """Entries are taken and sessions close as before; a process that starts meanwhile works; then all is archived and told."""
    bot, log = await stage.make_bot("talking"), Log()
    for part in ("api", "api", "worker"):
        await stage.processes.start(part)
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.2, pace_s=PACE_S):
        await asyncio.sleep(min(seconds, 20))
        stage.postgres.stop()
        began_s = time.monotonic()
        await asyncio.sleep(seconds / 2)
        newcomer = await stage.processes.start("api")
        await asyncio.sleep(seconds / 2)
        refused = await _sessions_status(stage)
        ended_s = time.monotonic()
        stage.postgres.start()
    await close_all(stage, bot)
    drained_s = time.monotonic() - ended_s
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    before = _p99_s([said for said in log.said if said.acknowledged_s < began_s])
    during = _p99_s([said for said in log.said if began_s < said.began_s and said.acknowledged_s < ended_s])
    besides = f"{verdict.messages} messages; p99 of ingest {before * 1000:.0f} ms before, {during * 1000:.0f} ms meanwhile"
    tabulate(Row.of(f"Postgres stopped for {seconds} s", 1, verdict, recovery_s=drained_s, besides=besides))
    assert newcomer.status is None
    assert not log.troubles
    assert stage.traces() == []
    assert refused == 503
    assert left == 0
    verdict.check()
    assert during < 2 * before + 0.05


@pytest.mark.parametrize(("seconds", "sessions"), (pytest.param(4, 2_000, id="short"), full(60, 20_000, timeout_s=400)))
async def test_redis_frozen_under_load(stage: Ground, tabulate: Tabulate, seconds: int, sessions: int) -> None:
    """Everybody is told within 2 s to come back, nothing piles up, and what fell due meanwhile is closed soon after."""
    bot, log, waiting = await stage.make_bot("talking"), Log(), Log()
    api = await stage.processes.start("api")
    worker = await stage.processes.start("worker")
    late, flooded = await stage.make_bot("late", told=False), await stage.make_bot("flooded", told=False)
    due_ms = await open_many(stage, late, waiting, sessions)
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.2, pace_s=PACE_S):
        await asyncio.sleep(0.5)
        rss_before = api.rss() + worker.rss()
        await stage.move_clock(late, to_ms=due_ms)
        async with _frozen(stage), _flood(stage, flooded) as answers:
            await asyncio.sleep(seconds)
        thawed_s = time.monotonic()
        rss_after = api.rss() + worker.rss()
        ready_s = await until(lambda: _ready(stage), within_s=BACK_S, what="ready again")
        back_s = await back_after_s(log, thawed_s)
    await until_archived(stage, late)
    drained_s = time.monotonic() - thawed_s
    await close_all(stage, bot)
    verdict, late_verdict = await judge(stage, log), await judge(stage, waiting, told=False)
    left = await unaccounted(stage)

    besides = (
        f"{len(answers)} answers 503 within {max(answers):.1f} s; memory {(rss_after - rss_before) / MEGABYTE:+.0f} MB; "
        f"{sessions} overdue sessions archived after {drained_s:.1f} s"
    )
    tabulate(Row.of(f"Redis frozen for {seconds} s", 1, verdict, recovery_s=max(ready_s, back_s), besides=besides))
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()
    late_verdict.check()
    assert max(answers) < ANSWER_S
    assert back_s < BACK_S
    assert drained_s < DRAINED_S
    assert rss_after - rss_before < 50 * MEGABYTE


@asynccontextmanager
async def _frozen(stage: Ground) -> AsyncIterator[None]:
    """Redis is there and does nothing."""
    pid = stage.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _flood(stage: Ground, bot: str, *, callers: int = 100) -> AsyncIterator[list[float]]:
    """Many clients that do not wait for better times; gives how long each answer took, all of which must be 503."""
    over, answers = asyncio.Event(), list[float]()

    async def ask(name: str) -> None:
        body = f'{{"user_id":"{name}","role":"user","message_id":"{name}"}}'.encode()
        async with stage.caller() as caller:
            while not over.is_set():
                began_s = time.monotonic()
                answer = await caller.post(f"/v1/bots/{bot}/messages", body)
                answers.append(time.monotonic() - began_s)
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) >= 1
                await asyncio.sleep(0.1)

    tasks = [asyncio.create_task(ask(f"flood.{number}")) for number in range(callers)]
    try:
        yield answers
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def _ready(stage: Ground) -> bool:
    async with stage.caller() as caller:
        return (await caller.get("/readyz")).status == 200


def _p99_s(said: Sequence[Said]) -> float:
    took = sorted(item.acknowledged_s - item.began_s for item in said)
    return took[int(len(took) * 0.99)]


async def _sessions_status(stage: Ground) -> int:
    async with stage.caller() as caller:
        return (await caller.get("/v1/sessions", limit_s=15)).status
