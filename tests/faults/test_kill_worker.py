"""Kill -9 of a worker at each step of closing, archiving, delivering, while another works: a step is repeated, none is lost."""

import asyncio
from dataclasses import dataclass, field
from random import Random

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, unaccounted, until_archived, until_delivered
from tests.faults.falling_due import ARCHIVED, falling_due
from tests.faults.installation import CLAIM_LEASE_S, DELIVERY_LEASE_S, SHARD_LEASE_S, Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log

# How often at most a victim comes by before it is killed: a delivery's steps come once for each, the others once a batch.
POINTS = {
    "sweep.after_read": 5,
    "sweep.after_commit": 5,
    "archive.after_read": 5,
    "archive.before_commit": 5,
    "archive.after_commit": 5,
    "archive.after_release": 5,
    "deliver.after_claim": 20,
    "deliver.before_post": 20,
    "deliver.after_post": 20,
    "deliver.after_record": 3,
}
# Claims of a killed worker count as in flight until their leases expire, so the endpoint needs room for more.
CONCURRENCY = 20_000
AT_ONCE = 3
# Slow, so that most of the work is for those who die of it.
STEADY_TICK_MS = 500
ALLOWED_S = 5.0

# From its archiving to its delivery, without the leases of the claims that came to nothing: `attempt` counts them.
_LATE = """
    SELECT extract(epoch FROM max(delivered_at - created_at - (attempt - 1) * make_interval(secs => :lease)))::float8 AS late_s
    FROM deliveries WHERE bot_id = :bot
"""


@dataclass
class Killing:
    """Workers killed at one point, and the sessions that closed meanwhile, of a bot of their own."""

    point: str
    bot: str
    log: Log = field(default_factory=Log)
    due_s: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize("rounds", (pytest.param(1, id="short"), full(50, timeout_s=600)))
async def test_worker_killed_while_sessions_close(stage: Installation, tabulate: Tabulate, rounds: int) -> None:
    """Every session is archived and delivered once, not later than a lease and 5 s after it was due."""
    await stage.start("api")
    await stage.start("worker", delivery_concurrency=CONCURRENCY, tick_ms=STEADY_TICK_MS)
    killings = [Killing(point, await stage.make_bot(point)) for point in POINTS]
    for killing in killings:
        async with falling_due(stage, killing.bot, killing.log, killing.due_s):
            await _kill_again_and_again(stage, killing.point, rounds)
    for killing in killings:
        await until_archived(stage, killing.bot)
    await until_delivered(stage)

    for killing in killings:
        await _judge(stage, tabulate, killing, rounds)
    assert stage.traces() == []
    assert await unaccounted(stage) == 0


async def _kill_again_and_again(stage: Installation, point: str, rounds: int) -> None:
    """Let some workers at a time work beside the steady one, each until it is killed, then another in its place."""
    rng = Random(point)  # noqa: S311 - the same rounds each time
    left = rounds

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            armed = f"{point}:{rng.randint(1, POINTS[point])}"
            victim = await stage.start("worker", armed=armed, delivery_concurrency=CONCURRENCY)
            async with asyncio.timeout(60):
                await victim.over.wait()
            assert victim.status == -9

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


async def _judge(stage: Installation, tabulate: Tabulate, killing: Killing, rounds: int) -> None:
    verdict = await judge(stage, killing.log)
    rows = await stage.rows(f"{ARCHIVED} WHERE bot_id = :bot", bot=killing.bot)
    # If nothing was archived or delivered, the verdict reports it.
    overdue_s = max((row.at_s - killing.due_s[row.user] for row in rows), default=0.0)
    (row,) = await stage.rows(_LATE, bot=killing.bot, lease=DELIVERY_LEASE_S)
    late_s = row.late_s or 0.0

    besides = f"{verdict.sessions} sessions; {verdict.repeats} webhooks again, {late_s:.1f} s after their lease at most"
    tabulate(Row.of(f"worker killed at {killing.point}", rounds, verdict, recovery_s=overdue_s, besides=besides))
    assert killing.log.refusals == []
    verdict.check()
    assert overdue_s < max(CLAIM_LEASE_S, SHARD_LEASE_S) + allowed_s(ALLOWED_S)
    assert late_s < allowed_s(ALLOWED_S)
