"""Rolling restarts of `adjourn serve` under load: no connection is refused, and nothing is lost."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.serving import Serving, serving
from tests.faults.conftest import Tabulate, full
from tests.faults.draining import end_all, unaccounted, until
from tests.faults.installation import SETTINGS, Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log, chatter


@pytest.mark.parametrize("rounds", (pytest.param(1, id="short"), full(20, timeout_s=400)))
async def test_rolling_restarts_under_load(stage: Installation, tabulate: Tabulate, tmp_path: Path, rounds: int) -> None:
    """Every process is replaced each time, and every request is answered: by 200 or, for a moment, by 503."""
    bot, log = await stage.make_bot("talking", clock=None), Log()
    settings: dict[str, Any] = SETTINGS | {"redis_url": stage.redis.url, "database_url": stage.postgres.url}
    took_s = []
    with serving(tmp_path, "--workers", "2", **settings) as served:
        stage = stage.at(int(served.url.rpartition(":")[2]))
        async with chatter(stage.caller, bot, log, talkers=6, ends=0.1, pace_s=0.01):
            for _ in range(rounds):
                took_s.append(await _replace_all(served))  # noqa: PERF401 - it waits
        await end_all(stage, bot, log)
    verdict = await judge(stage, log)
    left = await unaccounted(stage)

    besides = (
        f"{verdict.messages} messages; not answered by 200: {dict(log.troubles) or 'none'}; a restart took {max(took_s):.1f} s"
    )
    tabulate(Row.of("rolling restart", rounds, verdict, besides=besides))
    assert "Traceback" not in served.output
    assert set(log.troubles) <= {"503"}
    assert left == 0
    verdict.check()


async def _replace_all(served: Serving) -> float:
    """Have all processes replaced, one after the other; gives how long that took, in s."""
    before = _pids(served)
    served.process.send_signal(signal.SIGUSR1)

    async def replaced() -> bool:
        now = _pids(served)
        return not before & now and len(now) == len(before)

    return await until(replaced, within_s=60, what="every process replaced")


def _pids(served: Serving) -> set[int]:
    return {child.pid for part, children in served.processes().items() for child in children if part in {"api", "worker"}}
