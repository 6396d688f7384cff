"""Many workers on the same sessions, and workers that stop in the middle of what they do and go on a minute later."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from app.live import keys
from tests.faults.conftest import Tabulate, full
from tests.faults.draining import SHARDS, allowed_s, unaccounted, until, until_archived, until_delivered
from tests.faults.falling_due import ARCHIVED, falling_due, open_many
from tests.faults.installation import CLAIM_LEASE_S, SHARD_LEASE_S, Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log
from tests.receiver import in_turn, reply

STOPS = ("sweep.after_read", "archive.before_commit", "deliver.before_post", "deliver.after_post")
ALLOWED_S = 5.0


@pytest.mark.parametrize(("sessions", "workers"), (pytest.param(2_000, 3, id="short"), full(100_000, 8, timeout_s=400)))
async def test_many_workers_find_the_same_sessions_due(
    stage: Installation, tabulate: Tabulate, sessions: int, workers: int
) -> None:
    """However many workers see that it is due, a session closes once: one close counted, one record written, one row archived."""
    bot, log = await stage.make_bot("due", subscribed=False), Log()
    await stage.start("api")
    started = [await stage.start("worker") for _ in range(workers)]
    due_ms = await open_many(stage, bot, log, sessions)
    await stage.move_clock(bot, to_ms=due_ms)
    took_s = await until_archived(stage, bot, within_s=240)
    verdict = await judge(stage, log, delivered=False)
    closed, written = await _counts(stage)
    left = await unaccounted(stage)
    verdict = replace(verdict, double=verdict.double + ["closed or written more than once"] * (max(closed, written) - sessions))

    besides = f"{closed} closes counted, {written} records written"
    tabulate(Row.of(f"{workers} workers on {sessions:,} sessions due at once", 1, verdict, recovery_s=took_s, besides=besides))
    assert all(worker.status is None for worker in started)
    assert log.refusals == stage.traces() == []
    assert closed == written == sessions
    assert left == 0
    verdict.check()


@pytest.mark.parametrize("seconds", (pytest.param(8, id="short"), full(60, timeout_s=300)))
async def test_workers_paused_in_the_middle(stage: Installation, tabulate: Tabulate, seconds: int) -> None:
    """Others do their work after a lease; when they go on, what they still had in hand changes nothing any more."""
    bot, log, due_s = await stage.make_bot("closing"), Log(), dict[str, float]()
    limits: dict[str, Any] = {"database_timeout_s": 2, "delivery_concurrency": 1_000, "delivery_timeout_s": 3}
    await stage.start("api")
    await stage.start("worker", **limits)
    paused = [await stage.start("worker", armed=f"{point}:2:stop", **limits) for point in STOPS]
    async with falling_due(stage, bot, log, due_s):
        await asyncio.gather(*(worker.until_paused() for worker in paused))
        await asyncio.sleep(seconds)
        # One of them had sent a webhook, and records it too late.
        await until(lambda: _sent_again(stage, bot), within_s=60, what="a webhook of a paused worker sent again")
        for worker in paused:
            worker.resume()
    await until_archived(stage, bot)
    await until_delivered(stage)
    verdict = await judge(stage, log)
    overdue_s = max((row.at_s - due_s[row.user] for row in await stage.rows(ARCHIVED)), default=0.0)
    left = await unaccounted(stage)

    besides = f"{verdict.sessions} sessions, {verdict.repeats} webhooks again"
    tabulate(
        Row.of(f"{len(STOPS)} workers paused for {seconds} s in the middle", 1, verdict, recovery_s=overdue_s, besides=besides)
    )
    assert all(worker.status is None for worker in paused)
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()
    assert verdict.repeats > 0
    # One of them sat on a transaction, which Postgres ends after twice its limit for a statement.
    assert overdue_s < 2 * limits["database_timeout_s"] + max(CLAIM_LEASE_S, SHARD_LEASE_S) + allowed_s(ALLOWED_S)


@pytest.mark.parametrize(
    ("point", "status"),
    (
        # The other worker's attempt arrives, and then the late one is refused.
        ("deliver.before_post", "delivered"),
        # The late one had arrived, unknown to the other, whose own attempt is refused: that is to be tried again.
        ("deliver.after_post", "pending"),
    ),
)
async def test_a_record_that_comes_after_its_lease_changes_nothing(
    stage: Installation, tabulate: Tabulate, point: str, status: str
) -> None:
    """A worker paused between claim and record, for longer than its lease: what the other one recorded stands."""
    bot, log = await stage.make_bot("closing"), Log()
    stage.receiver.behave(f"/{bot}", in_turn(reply(200), reply(500)))
    await stage.start("api")
    limits: dict[str, Any] = {"delivery_lease_margin_ms": 1_000}
    late = await stage.start("worker", armed=f"{point}:1:stop", **limits)
    await stage.move_clock(bot, to_ms=await open_many(stage, bot, log, 1))
    await late.until_paused()
    await stage.start("worker", **limits)
    await until(lambda: _attempts_kept(stage, 1), within_s=20, what="the other worker's attempt recorded")
    between = await stage.rows("SELECT * FROM deliveries")
    late.resume()
    await until(lambda: _attempts_kept(stage, 2), within_s=20, what="the late attempt recorded")
    after = await stage.rows("SELECT * FROM deliveries")
    verdict = await judge(stage, log)

    tabulate(
        Row.of(f"worker paused at {point} for longer than its lease", 1, verdict, besides=f"{verdict.repeats} webhooks again")
    )
    assert [(row.status, row.attempt) for row in between] == [(status, 2)]
    assert after == between
    assert log.refusals == stage.traces() == []
    verdict.check()
    assert verdict.repeats == 1


async def _sent_again(stage: Installation, bot: str) -> bool:
    requests = stage.receiver.at(f"/{bot}")
    return len({request.id for request in requests}) < len(requests)


async def _attempts_kept(stage: Installation, count: int) -> bool:
    (row,) = await stage.rows("SELECT count(*) AS n FROM attempts")
    return bool(row.n == count)


async def _counts(stage: Installation) -> tuple[int, int]:
    """How many sessions all shards say were closed, and how many records were written."""
    async with stage.live() as client:
        replies = [await client.hmget(keys.counts(shard), "closed", "written") for shard in range(SHARDS)]
    return sum(int(closed or 0) for closed, _ in replies), sum(int(written or 0) for _, written in replies)
