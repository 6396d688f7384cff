"""The run of `make soak`, shortened: every kind of its faults once."""

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.installation import Installation
from tests.faults.soak import soak
from tests.faults.table import Row


@pytest.mark.parametrize("minutes", (full(1.0, timeout_s=300),))
async def test_nothing_is_left_after_traffic_with_every_fault(stage: Installation, tabulate: Tabulate, minutes: float) -> None:
    """Nothing is lost, stuck or left in Redis, and no process grows but by the caches that one minute fills."""
    done = await soak(stage, minutes=minutes, fault_every_s=minutes * 60 / 5)

    tabulate(Row.of("soak", done.faults, done.verdict, besides=f"{done.entries} entries; keys left: {len(done.keys_left)}"))
    assert done.faults >= 4
    done.check(growth=1.25)
