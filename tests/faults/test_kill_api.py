"""Kill -9 of an API process, again and again, under load: a bot that retries with the same `message_id` loses nothing."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import close_all, unaccounted
from tests.faults.installation import Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log, Talker, back_after_s, chatter

# Replies of Redis are many for a request, and the first few are part of a start.
POINTS = {"ingest.before_commit": (1, 40), "redis.after_execution": (20, 300), "ingest.after_commit": (1, 40)}


@pytest.mark.parametrize("rounds", (pytest.param(3, id="short"), full(67, timeout_s=300)))
@pytest.mark.parametrize("point", POINTS)
async def test_api_killed_while_bots_talk(stage: Installation, tabulate: Tabulate, point: str, rounds: int) -> None:
    """Each entry is in one session, once, and its receipt says so, whenever the process that took it died."""
    bot, log = await stage.make_bot("talking"), Log()
    worker = await stage.start("worker")
    async with chatter(stage.caller, bot, log, talkers=4), _moving_clock(stage, bot):
        killed_s = await _kill_again_and_again(stage, point, rounds)
        await stage.start("api")
        downtime_s = max([await back_after_s(log, at_s) for at_s in killed_s])
    await close_all(stage, bot)
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    besides = f"{verdict.messages} messages, {log.troubles.total()} tries again"
    tabulate(Row.of(f"API killed at {point}", rounds, verdict, recovery_s=downtime_s, besides=besides))
    assert worker.status is None
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()


async def _kill_again_and_again(stage: Installation, point: str, rounds: int) -> list[float]:
    """Let one process after the other take requests until it is killed; gives when that was."""
    rng = Random(point)  # noqa: S311 - the same rounds each time
    killed_s = []
    for _ in range(rounds):
        victim = await stage.start("api", armed=f"{point}:{rng.randint(*POINTS[point])}")
        async with asyncio.timeout(60):
            await victim.over.wait()
        killed_s.append(time.monotonic())
        assert victim.status == -9
    return killed_s


@asynccontextmanager
async def _moving_clock(stage: Installation, bot: str) -> AsyncIterator[None]:
    """Move the bot's clock now and then, so that sessions close while others talk."""
    over = asyncio.Event()

    async def move() -> None:
        rng = Random(bot)  # noqa: S311 - the same moves each time
        async with stage.caller() as caller:
            while not over.is_set():
                await Talker(caller, bot, Log()).advance(seconds=rng.choice((60, 300, 900)))
                await asyncio.sleep(0.2)

    task = asyncio.create_task(move())
    try:
        yield
    finally:
        over.set()
        await task
