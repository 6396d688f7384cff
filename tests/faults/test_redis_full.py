"""Redis full: only entries are refused, and they are accepted again as soon as there is room."""

import asyncio
import time
from typing import Any

import pytest

from app.live import keys
from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, close_all, unaccounted, until_archived, until_delivered
from tests.faults.falling_due import open_many
from tests.faults.installation import Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log, Talker, back_after_s, chatter, until_said

RESUMED_S = 30.0
# A plain SET would be refused; what cannot enlarge memory goes first, as in the product's own scripts.
_MOVE = "redis.call('HDEL', KEYS[1] .. ':none', '') return redis.call('SET', KEYS[1], ARGV[1])"


ROUNDS = (pytest.param(4, 500, id="short"), full(15, 5_000, timeout_s=200))


@pytest.mark.parametrize(("seconds", "sessions"), ROUNDS)
async def test_redis_full_under_load(stage: Installation, tabulate: Tabulate, seconds: int, sessions: int) -> None:
    """Entries get 503 with `Retry-After`; due sessions close, are archived and delivered; nothing is evicted."""
    await _fill_and_lift(stage, tabulate, seconds, sessions)


@pytest.mark.parametrize(("seconds", "sessions"), ROUNDS)
@pytest.mark.usefixtures("older_redis")
async def test_older_redis_full_under_load(stage: Installation, tabulate: Tabulate, seconds: int, sessions: int) -> None:
    """The same where scripts have no flags."""
    await _fill_and_lift(stage, tabulate, seconds, sessions)


async def _fill_and_lift(stage: Installation, tabulate: Tabulate, seconds: int, sessions: int) -> None:
    bot, due, log, waiting = await stage.make_bot("talking"), await stage.make_bot("due"), Log(), Log()
    for part in ("api", "worker"):
        await stage.start(part)
    due_ms = await open_many(stage, due, waiting, sessions)
    other = await _open_one(stage)
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.1, pace_s=0.02), stage.live() as client:
        await until_said(log, 20)
        await _fill(client)
        refusal = await _refused(stage, bot)
        await client.eval(_MOVE, 1, keys.sandbox_clock(due), due_ms)
        closed_s = await until_archived(stage, due)
        await until_delivered(stage)
        by_api, moved = await _close_by_api(stage, other), await _move_by_api(stage, bot)
        await asyncio.sleep(seconds)
        ready = await _readiness(stage)
        await client.config_set("maxmemory", 0)
        back_s = await back_after_s(log, time.monotonic())
        evicted = (await client.info("stats"))["evicted_keys"]
        server = await client.info("server")
    await close_all(stage, bot)
    verdict, due_verdict = await judge(stage, log), await judge(stage, waiting)
    left = await unaccounted(stage)

    besides = f"{log.troubles['503']} refusals; {sessions} sessions closed and archived meanwhile, in {closed_s:.1f} s"
    name = f"Valkey {server['valkey_version']}" if "valkey_version" in server else f"Redis {server['redis_version']}"
    tabulate(Row.of(f"{name} full for {seconds} s and more", 1, verdict, recovery_s=back_s, besides=besides))
    assert refusal == 5
    assert (by_api, moved) == (200, 503)
    assert set(log.troubles) == {"503"}
    assert stage.traces() == []
    assert ready == {
        "status": "ready",
        "checks": dict.fromkeys(("redis", "durability", "configuration", "postgres", "worker", "archive"), "ok"),
    }
    assert evicted == 0
    assert left == 0
    due_verdict.check()
    verdict.check()
    assert back_s < allowed_s(RESUMED_S)


async def _open_one(stage: Installation) -> str:
    """Open a session of a bot without endpoints; returns its id."""
    await stage.make_bot("other", subscribed=False)
    async with stage.caller() as caller:
        return str((await Talker(caller, "other", Log()).say("single", 1)).receipt["session_id"])


async def _fill(client: Any) -> None:  # noqa: ANN401 - a client of Redis
    """Leave no room: the limit is what is used now, or a little less."""
    used = (await client.info("memory"))["used_memory"]
    await client.config_set("maxmemory", used - 200_000)


async def _refused(stage: Installation, bot: str) -> int:
    """An entry is refused; gives after how many seconds one should come again."""
    async with stage.caller() as caller:
        answer = await caller.post(f"/v1/bots/{bot}/messages", b'{"user_id":"refused","role":"user","message_id":"never"}')
    assert answer.status == 503, answer
    return int(answer.headers["retry-after"])


async def _close_by_api(stage: Installation, session: str) -> int:
    async with stage.caller() as caller:
        return (await caller.post(f"/v1/sessions/{session}/close", b"")).status


async def _move_by_api(stage: Installation, bot: str) -> int:
    async with stage.caller() as caller:
        return (await caller.post(f"/v1/bots/{bot}/clock/advance", b'{"seconds": 1}')).status


async def _readiness(stage: Installation) -> Any:  # noqa: ANN401 - JSON
    async with stage.caller() as caller:
        return (await caller.get("/readyz")).body
