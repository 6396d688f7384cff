"""Kill -9 of Redis under load, as it is and with the last second of its file cut off, as a power loss would."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from tests.faults import append_only_file
from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, close_all, end_all, unaccounted, until
from tests.faults.installation import Installation
from tests.faults.oracle import FoundSession, Verdict, deliveries, doubles, found_sessions, judge
from tests.faults.table import Row
from tests.faults.talk import Log, back_after_s, chatter, until_said
from tests.receiver import Received

BACK_S = 5.0
CUT_S = 1.0


@pytest.mark.parametrize("rounds", (pytest.param(1, id="short"), full(30, timeout_s=400)))
async def test_redis_killed_under_load(stage: Installation, tabulate: Tabulate, rounds: int) -> None:
    """With `appendfsync always` nothing that was acknowledged is lost, and entries are taken again within 5 s."""
    bot, log = await stage.make_bot("talking"), Log()
    rng = Random(bot)  # noqa: S311 - the same rounds each time
    working = [await stage.start(part) for part in ("api", "api", "worker", "worker")]
    down_s = []
    async with chatter(stage.caller, bot, log, talkers=4, ends=0.1):
        for _ in range(rounds):
            await asyncio.gather(until_said(log, 20), asyncio.sleep(rng.uniform(0.3, 1.0)))
            stage.redis.kill()
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            await stage.revive(stage.redis)
            down_s.append(await back_after_s(log, time.monotonic()))
    await close_all(stage, bot)
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    besides = f"{verdict.messages} messages; an answer took {log.slowest_answer_s:.1f} s at most"
    tabulate(Row.of("Redis killed, `always`", rounds, verdict, recovery_s=max(down_s), besides=besides))
    assert all(process.status is None for process in working)
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()
    assert max(down_s) < allowed_s(BACK_S)


@pytest.mark.parametrize("rounds", (pytest.param(1, id="short"), full(30, timeout_s=400)))
async def test_redis_comes_back_without_its_last_second(stage: Installation, tabulate: Tabulate, rounds: int) -> None:
    """Lost are exactly the messages that were cut off before they were archived; nothing closes twice, surplus is continued."""
    bot, log, cut = await stage.make_bot("talking", clock=None), Log(), set[str]()
    for part in ("api", "api", "worker", "worker"):
        await stage.start(part)
    path, known, down_s = append_only_file.path_in(stage.redis.data_dir), 0, []
    async with _sizes(path) as sizes, chatter(stage.caller, bot, log, talkers=4, ends=0.2):
        for _ in range(rounds):
            await _never_rewrite(stage)
            await asyncio.gather(until_said(log, 20), asyncio.sleep(1.5 * CUT_S))
            stage.redis.kill()
            before_s = time.monotonic() - CUT_S
            archived = await _archived_for_good(stage)
            acknowledged = {said.message_id for said in log.said}
            piece = append_only_file.cut(path, to=max(size for at_s, size in sizes if at_s < before_s), known=known)
            known = piece.kept
            cut |= (piece.message_ids & acknowledged) - archived
            await stage.revive(stage.redis)
            sizes.clear()
            down_s.append(await back_after_s(log, time.monotonic()))
    await end_all(stage, bot, log)
    found = await found_sessions(stage, [bot])
    verdict = _judge_after_cuts(found, stage.receiver.at(f"/{bot}"), log, cut)
    left = await unaccounted(stage)

    continued = [item for item in found if item.continuation_of is not None]
    kept = {said.message_id for said in log.said if said.receipt["session_id"] is not None}
    missing = kept - {message_id for item in found for message_id in item.seen.all_messages}
    besides = f"{len(cut)} of {len(kept)} messages cut off, {len(missing)} lost; {len(continued)} continuations"
    tabulate(Row.of("Redis back without its last second", rounds, verdict, recovery_s=max(down_s), besides=besides))
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()
    assert missing == cut
    assert cut
    assert continued
    assert max(down_s) < allowed_s(BACK_S)


def _judge_after_cuts(found: Sequence[FoundSession], webhooks: Sequence[Received], log: Log, cut: set[str]) -> Verdict:
    """Where history was cut, sessions cannot be foretold; but every message must be in one of them unless it was cut off.

    `lost` are the missing messages that were not cut off.
    """
    there = {message_id for item in found for message_id in item.seen.all_messages}
    kept = {said.message_id for said in log.said if said.receipt["session_id"] is not None}
    # A late entry that was cut off leaves a gap among the late ones.
    whole = ((item, item.sequences[: len(item.seen.messages)]) for item in found)
    gaps = [f"sequence with a gap: {item}" for item, sequences in whole if sequences != tuple(range(1, len(sequences) + 1))]
    undelivered, unknown, twice = deliveries(found, webhooks)
    return Verdict(
        sessions=len(found),
        messages=len(there),
        lost=[f"missing: {message_id}" for message_id in kept - there - cut] + undelivered,
        unexpected=[f"cut off, and there: {message_id}" for message_id in cut & there] + gaps + unknown,
        double=doubles(found) + twice,
        repeats=len(webhooks) - len({request.id for request in webhooks}),
        late=sum(len(item.seen.late) for item in found),
    )


async def _never_rewrite(stage: Installation) -> None:
    """The file only grows, so that a place in it stays the same place; a restart forgets this."""
    async with stage.live() as client:
        await client.config_set("auto-aof-rewrite-percentage", 0)


@asynccontextmanager
async def _sizes(path: Path) -> AsyncIterator[list[tuple[float, int]]]:
    """How large a file was at which instant, looked at all the time."""
    sizes: list[tuple[float, int]] = []

    async def look() -> None:
        while True:
            sizes.append((time.monotonic(), path.stat().st_size))  # noqa: ASYNC240 - takes no time
            await asyncio.sleep(0.01)

    task = asyncio.create_task(look())
    try:
        yield sizes
    finally:
        task.cancel()


async def _archived_for_good(stage: Installation) -> set[str]:
    """The messages that Postgres holds, once no transaction is under way; Redis is dead, so none begins."""

    async def quiet() -> bool:
        (row,) = await stage.rows(
            "SELECT count(*) AS busy FROM pg_stat_activity "
            "WHERE application_name = 'adjourn' AND state <> 'idle' AND pid <> pg_backend_pid()"
        )
        return int(row.busy) == 0

    await asyncio.sleep(0.3)
    await until(quiet, within_s=10, what="no transaction under way")
    return {row.message_id for row in await stage.rows("SELECT message_id FROM messages")}
