"""Clocks that jump in some processes while the others' go right: sessions are bounded by Redis's time all the same."""

import asyncio
import time

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, end_all, unaccounted
from tests.faults.installation import Installation
from tests.faults.oracle import judge
from tests.faults.table import Row
from tests.faults.talk import Log, chatter

# In s after the process starts, by how many s its clocks jump then: as in a machine that was suspended, or set back.
JUMPS = ((2.0, 3_600.0), (3.0, -7_200.0), (4.0, 0.9), (5.0, 3_600.0))
# From the entry's being sent to its answer there is time, and a commit may be 500 ms off Redis's clock.
OFF_MS = 600


@pytest.mark.parametrize("seconds", (pytest.param(6, id="short"), full(20, timeout_s=120)))
async def test_clocks_that_jump(stage: Installation, tabulate: Tabulate, seconds: int) -> None:
    """No entry has a wrong time of receipt and no session closes too soon, though some clocks are wrong by an hour."""
    bot, log = await stage.make_bot("talking", clock=None), Log()
    offset_s = time.time() - time.monotonic()
    for skew in ((), JUMPS):
        await stage.start("api", skew=skew)
        await stage.start("worker", skew=skew)
    async with chatter(stage.caller, bot, log, talkers=8, ends=0.1):
        await asyncio.sleep(seconds)
    await end_all(stage, bot, log)
    verdict = await judge(stage, log)
    off_ms = max(_off_ms(said.received_at_ms, (said.began_s + offset_s, said.acknowledged_s + offset_s)) for said in log.said)
    left = await unaccounted(stage)

    besides = f"{verdict.messages} messages, received at most {off_ms} ms off; {log.troubles.total()} tries again"
    tabulate(Row.of("clocks of an API process and a worker jump by hours", len(JUMPS), verdict, besides=besides))
    assert set(log.troubles) <= {"503"}, log.troubles  # a commit that is under way when the clock jumps may be given up
    assert stage.traces() == []
    assert left == 0
    verdict.check()
    assert off_ms < allowed_s(OFF_MS)


def _off_ms(received_at_ms: int, within_s: tuple[float, float]) -> int:
    """How far an instant is from the time between asking and answering."""
    began_s, acknowledged_s = within_s
    return round(max(began_s * 1000 - received_at_ms, received_at_ms - acknowledged_s * 1000, 0))
