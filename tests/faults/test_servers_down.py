"""Postgres stopped, Redis frozen: for minutes, under load."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, close_all, unaccounted, until, until_archived
from tests.faults.falling_due import open_many
from tests.faults.installation import Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log, Said, Talker, back_after_s, chatter, until_said

PACE_S = 0.02
TO_NEWCOMER = 20
ANSWER_S = 2.5
BACK_S = 5.0
DRAINED_S = 30.0
MEGABYTE = 1 << 20


@pytest.mark.parametrize("seconds", (pytest.param(5, id="short"), full(120, timeout_s=400)))
async def test_postgres_stopped_under_load(stage: Installation, tabulate: Tabulate, seconds: int) -> None:
    """Entries are accepted and sessions close, also by a process that starts meanwhile; then all is archived and delivered."""
    bot, log, alone = await stage.make_bot("talking"), Log(), Log()
    before_s, window_s = max(5, seconds // 2), min(seconds, 20)
    for part in ("api", "api", "worker"):
        await stage.start(part)
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.2, pace_s=PACE_S):
        await asyncio.gather(until_said(log, 100), asyncio.sleep(before_s))
        await asyncio.to_thread(stage.postgres.stop)
        began_s = time.monotonic()
        await asyncio.sleep(seconds / 2)
        newcomer = await stage.start("api", descriptor=stage.apart.fileno())
        await asyncio.gather(_talk_to_newcomer(stage, bot, alone), asyncio.sleep(seconds / 2))
        refused = await _sessions_status(stage)
        ended_s = time.monotonic()
        await stage.revive(stage.postgres)
    log.said += alone.said
    await close_all(stage, bot)
    drained_s = time.monotonic() - ended_s
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    before, during = _p99_s(log.said, 0, began_s), _p99_s(log.said, began_s, ended_s)
    spreads = [
        _spread(log.said, at_s, until_s, window_s) for at_s, until_s in ((began_s - before_s, began_s), (began_s, ended_s))
    ]
    besides = (
        f"{verdict.messages} messages; p99 of ingest {_ms(before)} before and {_ms(during)} meanwhile, "
        f"from one {window_s} s to the next {spreads[0]} before and {spreads[1]} meanwhile"
    )
    tabulate(Row.of(f"Postgres stopped for {seconds} s", 1, verdict, recovery_s=drained_s, besides=besides))
    assert newcomer.status is None
    assert len(alone.said) == TO_NEWCOMER
    assert not log.troubles
    assert not alone.troubles
    assert stage.traces() == []
    assert refused == 503
    assert left == 0
    verdict.check()
    assert during < allowed_s(2 * before + 0.05)


@pytest.mark.parametrize("rounds", (pytest.param(1, id="short"), full(30, timeout_s=300)))
async def test_postgres_killed_under_load(stage: Installation, tabulate: Tabulate, rounds: int) -> None:
    """It crashes in the middle of transactions and recovers: unconfirmed ones are repeated, and nothing is stored twice."""
    bot, log, back_s = await stage.make_bot("talking"), Log(), list[float]()
    rng = Random(bot)  # noqa: S311 - the same rounds each time
    working = [await stage.start(part) for part in ("api", "worker", "worker")]
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.4):
        for _ in range(rounds):
            await asyncio.gather(until_said(log, 20), asyncio.sleep(rng.uniform(0.3, 1.0)))
            stage.postgres.kill()
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            await stage.revive(stage.postgres)
            back_s.append(await _archives_again_s(stage))
    await close_all(stage, bot)
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    besides = f"{verdict.messages} messages, {verdict.sessions} sessions"
    tabulate(Row.of("Postgres killed", rounds, verdict, recovery_s=max(back_s), besides=besides))
    assert all(process.status is None for process in working)
    assert not log.troubles
    assert stage.traces() == []
    assert left == 0
    verdict.check()


@pytest.mark.parametrize(("seconds", "sessions"), (pytest.param(4, 2_000, id="short"), full(60, 20_000, timeout_s=400)))
async def test_redis_frozen_under_load(stage: Installation, tabulate: Tabulate, seconds: int, sessions: int) -> None:
    """Every request gets 503 within 2 s, memory stays bounded, and sessions that fell due meanwhile are closed soon after."""
    bot, log, waiting = await stage.make_bot("talking"), Log(), Log()
    api = await stage.start("api")
    worker = await stage.start("worker")
    late, flooded = await stage.make_bot("late", subscribed=False), await stage.make_bot("flooded", subscribed=False)
    due_ms = await open_many(stage, late, waiting, sessions)
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.2, pace_s=PACE_S):
        await until_said(log, 20)
        rss_before = api.rss() + worker.rss()
        await stage.move_clock(late, to_ms=due_ms)
        async with _frozen(stage), _flood(stage, flooded) as answers:
            await asyncio.sleep(seconds)
        thawed_s = time.monotonic()
        rss_after = api.rss() + worker.rss()
        ready_s = await until(lambda: _ready(stage), within_s=allowed_s(BACK_S), what="ready again")
        back_s = await back_after_s(log, thawed_s)
    await until_archived(stage, late)
    drained_s = time.monotonic() - thawed_s
    await close_all(stage, bot)
    verdict, late_verdict = await judge(stage, log), await judge(stage, waiting, delivered=False)
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
    assert max(answers) < allowed_s(ANSWER_S)
    assert back_s < allowed_s(BACK_S)
    assert drained_s < allowed_s(DRAINED_S)
    assert rss_after - rss_before < 50 * MEGABYTE


@asynccontextmanager
async def _frozen(stage: Installation) -> AsyncIterator[None]:
    """Redis is there and does nothing."""
    pid = stage.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _flood(stage: Installation, bot: str, *, callers: int = 100) -> AsyncIterator[list[float]]:
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


async def _ready(stage: Installation) -> bool:
    async with stage.caller() as caller:
        return (await caller.get("/readyz")).status == 200


def _p99_s(said: Sequence[Said], since_s: float, until_s: float) -> float:
    """Of what was said and acknowledged between two instants of the monotonic clock."""
    within = (item for item in said if since_s < item.began_s and item.acknowledged_s < until_s)
    took = sorted(item.acknowledged_s - item.began_s for item in within)
    return took[int(len(took) * 0.99)]


def _spread(said: Sequence[Said], since_s: float, until_s: float, window_s: float) -> str:
    """The least and the most of the p99 of one window after the other."""
    windows = [since_s + number * window_s for number in range(max(1, round((until_s - since_s) / window_s)))]
    found = [_p99_s(said, at_s, at_s + window_s) for at_s in windows]
    return f"{_ms(min(found))} to {_ms(max(found))}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


async def _archives_again_s(stage: Installation) -> float:
    """How long it takes until one more session is archived than there was."""
    (before,) = await stage.rows("SELECT count(*) AS n FROM sessions")

    async def more() -> bool:
        (now,) = await stage.rows("SELECT count(*) AS n FROM sessions")
        return bool(now.n > before.n)

    return await until(more, within_s=allowed_s(BACK_S), what="archived again")


async def _talk_to_newcomer(stage: Installation, bot: str, log: Log) -> None:
    """Where it alone listens, so that no other process can have answered."""
    async with stage.at(stage.apart.getsockname()[1]).caller() as caller:
        talker = Talker(caller, bot, log)
        for number in range(1, TO_NEWCOMER + 1):
            await talker.say(f"{bot}.newcomer", number)


async def _sessions_status(stage: Installation) -> int:
    async with stage.caller() as caller:
        return (await caller.get("/v1/sessions", limit_s=15)).status
