"""Wires that break: a commit that was executed and whose reply never came, swallowed replies, half-open and slow connections."""

import asyncio
import time

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, close_all, unaccounted
from tests.faults.installation import Installation
from tests.faults.oracle import judge
from tests.faults.proxy import Mode, Proxy, proxy
from tests.faults.table import Row
from tests.faults.talk import Log, Talker, back_after_s, chatter, until_said

# The script that commits, and the one that releases what was archived.
COMMIT, RELEASE = b"EVALSHA", b"XDEL"
ANSWER_S = 2.5
BROKEN_S = 3.0


def _redis_through(wire: Proxy) -> str:
    return f"redis://127.0.0.1:{wire.port}"


def _postgres_through(wire: Proxy) -> str:
    return f"postgresql://postgres@127.0.0.1:{wire.port}/adjourn"


@pytest.mark.parametrize("rounds", (pytest.param(5, id="short"), full(50, timeout_s=200)))
async def test_replies_to_commits_are_lost(stage: Installation, tabulate: Tabulate, rounds: int) -> None:
    """The commit was executed and its reply is lost: the API and the workers find out by a retry, and nothing is stored twice."""
    bot, log = await stage.make_bot("talking"), Log()
    async with proxy(stage.redis.socket_path) as wire, proxy(stage.redis.socket_path) as other:
        await stage.start("api", redis_url=_redis_through(wire))
        await stage.start("worker", redis_url=_redis_through(other))
        async with chatter(stage.caller, bot, log, talkers=4, ends=0.1):
            for number in range(rounds):
                wire.cut_after(COMMIT)
                other.cut_after(RELEASE)
                async with asyncio.timeout(30):
                    while min(wire.cuts, other.cuts) <= number:
                        await asyncio.sleep(0.01)
                if number % 10 == 9:
                    await _advance(stage, bot)
        commits, releases = wire.cuts, other.cuts
        await close_all(stage, bot)
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    tabulate(Row.of("wire to Redis cut after execution", commits + releases, verdict, besides=f"{verdict.messages} messages"))
    assert commits >= rounds
    assert releases >= rounds
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()


@pytest.mark.parametrize("rounds", (pytest.param(1, id="short"), full(3, timeout_s=200)))
@pytest.mark.parametrize("mode", (Mode.MUTE, Mode.DEAD, Mode.REFUSE))
async def test_wire_to_redis_is_broken_for_a_while(stage: Installation, tabulate: Tabulate, mode: Mode, rounds: int) -> None:
    """However it is broken, every request is answered within 2 s, and work continues when the connection does."""
    bot, log, down_s = await stage.make_bot("talking"), Log(), []
    async with proxy(stage.redis.socket_path) as wire:
        for part in ("api", "worker"):
            await stage.start(part, redis_url=_redis_through(wire))
        async with chatter(stage.caller, bot, log, talkers=4, ends=0.1):
            for _ in range(rounds):
                await until_said(log, 20)
                wire.mode = mode
                if mode is Mode.REFUSE:
                    wire.cut()
                await asyncio.sleep(BROKEN_S)
                wire.mode = Mode.PASS
                down_s.append(await back_after_s(log, time.monotonic()))
        await close_all(stage, bot)
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    fault, besides = (
        f"wire to Redis {mode.name.lower()} for {BROKEN_S:g} s",
        f"the slowest answer took {log.slowest_answer_s:.1f} s",
    )
    tabulate(Row.of(fault, rounds, verdict, recovery_s=max(down_s), besides=besides))
    assert log.refusals == stage.traces() == []
    assert "503" in log.troubles
    assert left == 0
    verdict.check()
    assert log.slowest_answer_s < allowed_s(ANSWER_S)
    assert max(down_s) < allowed_s(5)


@pytest.mark.parametrize("seconds", (pytest.param(2, id="short"), full(10, timeout_s=120)))
async def test_wire_to_redis_is_slow(stage: Installation, tabulate: Tabulate, seconds: int) -> None:
    """300 ms on each reply slow everything down and break nothing."""
    bot, log = await stage.make_bot("talking"), Log()
    async with proxy(stage.redis.socket_path) as wire:
        for part in ("api", "worker"):
            await stage.start(part, redis_url=_redis_through(wire))
        async with chatter(stage.caller, bot, log, talkers=4, ends=0.1):
            await until_said(log, 20)
            wire.latency_s = 0.3
            await asyncio.sleep(seconds)
            wire.latency_s = 0.0
        await close_all(stage, bot)
    verdict = await judge(stage, log)

    besides = f"the slowest answer took {log.slowest_answer_s:.1f} s, {log.troubles.total()} tries again"
    tabulate(Row.of("wire to Redis 300 ms slower", 1, verdict, besides=besides))
    assert log.refusals == stage.traces() == []
    verdict.check()
    assert log.slowest_answer_s >= 0.3


@pytest.mark.parametrize("rounds", (pytest.param(4, id="short"), full(30, timeout_s=200)))
async def test_replies_to_postgres_commits_are_lost(stage: Installation, tabulate: Tabulate, rounds: int) -> None:
    """The archivist does not know whether its transaction stands; it does it again, and nothing is there twice."""
    bot, log = await stage.make_bot("talking"), Log()
    async with proxy(stage.postgres.sockets / ".s.PGSQL.5432") as wire:
        await stage.start("api")
        await stage.start("worker", database_url=_postgres_through(wire))
        async with chatter(stage.caller, bot, log, talkers=4, ends=0.2):
            for number in range(rounds):
                wire.cut_after(b"COMMIT;")  # not a table's ON COMMIT
                async with asyncio.timeout(30):
                    while wire.cuts <= number:
                        await asyncio.sleep(0.02)
        await close_all(stage, bot)
        # Read while the wire stands: its end may cut a transaction of a worker that goes on.
        before_commit = stage.postgres.log_path.read_text().count("EOF on client connection with an open transaction")
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    besides = f"{verdict.sessions} sessions, {verdict.repeats} webhooks again"
    tabulate(Row.of("wire to Postgres cut after COMMIT", wire.cuts, verdict, besides=besides))
    assert log.refusals == stage.traces() == []
    assert before_commit == 0
    assert left == 0
    verdict.check()


@pytest.mark.parametrize("seconds", (pytest.param(3, id="short"), full(12, timeout_s=200)))
async def test_wire_to_postgres_is_half_open(stage: Installation, tabulate: Tabulate, seconds: int) -> None:
    """The connection is dead without an error: the statement timeout ends the wait, and the archive catches up."""
    bot, log = await stage.make_bot("talking"), Log()
    async with proxy(stage.postgres.sockets / ".s.PGSQL.5432") as wire:
        for part in ("api", "worker"):
            await stage.start(part, database_url=_postgres_through(wire), database_timeout_s=1)
        async with chatter(stage.caller, bot, log, talkers=4, ends=0.2):
            await until_said(log, 20)
            wire.mode = Mode.DEAD
            await asyncio.sleep(seconds)
            wire.mode = Mode.PASS
        healed_s = time.monotonic()
        await close_all(stage, bot)
        drained_s = time.monotonic() - healed_s
    verdict = await judge(stage, log)

    besides = f"the slowest answer took {log.slowest_answer_s:.1f} s, {log.troubles.total()} tries again"
    tabulate(Row.of(f"wire to Postgres half-open for {seconds} s", 1, verdict, recovery_s=drained_s, besides=besides))
    assert not log.troubles
    assert log.refusals == stage.traces() == []
    verdict.check()


async def _advance(stage: Installation, bot: str) -> None:
    async with stage.caller() as caller:
        await Talker(caller, bot, Log()).advance(seconds=300)
