"""Kill -9 of a worker at each step of closing, archiving, delivering, while another works: a step is repeated, none is lost."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from app.delivery.dispatcher import LEASE_MARGIN_MS
from tests.faults.conftest import Tabulate, marks
from tests.faults.draining import unaccounted, until_archived, until_told
from tests.faults.falling_due import ARCHIVED, falling_due
from tests.faults.ground import CLAIM_LEASE_S, SETTINGS, SHARD_LEASE_S, Ground
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
# What a killed worker had claimed of an endpoint counts as under way until its lease is over: the endpoint needs room beside it.
CONCURRENCY = 20_000
ALLOWED_S = 5.0
AT_ONCE = 3
# Slow, so that most of the work is for those who die of it.
STEADY_TICK_MS = 500
DELIVERY_LEASE_S = float(str(SETTINGS["delivery_timeout_s"])) + LEASE_MARGIN_MS / 1000

# From its archiving to its delivery, without the leases of the claims that came to nothing: `attempt` counts them.
_LATE = """
    SELECT extract(epoch FROM max(delivered_at - created_at - (attempt - 1) * make_interval(secs => :lease)))::float8 AS late_s,
           max(attempt) AS attempts
    FROM deliveries
"""


@pytest.mark.parametrize(
    ("points", "rounds"),
    (
        pytest.param(tuple(POINTS), 1, id="short"),
        *(pytest.param((point,), 50, marks=marks(300), id=f"full-{point}") for point in POINTS),
    ),
)
async def test_worker_killed_while_sessions_close(stage: Ground, tabulate: Tabulate, points: Sequence[str], rounds: int) -> None:
    """Every session is archived and told once, and not later than a lease and 5 s after it was due."""
    bot, log = await stage.make_bot("closing"), Log()
    due_s: dict[str, float] = {}
    await stage.processes.start("api")
    await stage.processes.start("worker", delivery_concurrency=CONCURRENCY, tick_ms=STEADY_TICK_MS)
    async with falling_due(stage, bot, log, due_s):
        for point in points:
            await _kill_again_and_again(stage, point, rounds)
    await until_archived(stage, bot)
    await until_told(stage)
    verdict = await judge(stage, log)
    overdue_s = max(row.at_s - due_s[row.user] for row in await stage.rows(ARCHIVED))
    (late,) = await stage.rows(_LATE, lease=DELIVERY_LEASE_S)
    left = await unaccounted(stage)
    failed = await stage.rows("SELECT error, count(*) AS n FROM attempts WHERE error IS NOT NULL GROUP BY error")

    name = points[0] if len(points) == 1 else f"each of {len(points)} steps"
    besides = f"{verdict.sessions} sessions; {verdict.repeats} webhooks again, {late.late_s:.1f} s after their lease at most"
    tabulate(Row.of(f"worker killed at {name}", rounds * len(points), verdict, recovery_s=overdue_s, besides=besides))
    assert log.refusals == stage.traces() == []
    assert left == 0
    verdict.check()
    assert overdue_s < max(CLAIM_LEASE_S, SHARD_LEASE_S) + ALLOWED_S
    assert [tuple(row) for row in failed] == []
    assert late.late_s < ALLOWED_S


async def _kill_again_and_again(stage: Ground, point: str, rounds: int) -> None:
    """Let some workers at a time work beside the steady one, each until it is killed, then another in its place."""
    rng = Random(point)  # noqa: S311 - the same rounds each time
    left = rounds

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            armed = f"{point}:{rng.randint(1, POINTS[point])}"
            victim = await stage.processes.start("worker", armed=armed, delivery_concurrency=CONCURRENCY)
            async with asyncio.timeout(60):
                await victim.over.wait()
            assert victim.status == -9

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
