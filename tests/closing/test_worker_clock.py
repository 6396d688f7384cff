"""A worker's idea of the time, which decides what it finds due."""

import pytest

from app.clock import monotonic_ms, wall_ms
from app.resources import Resources
from app.worker import Worker

HOUR_MS = 3_600_000


@pytest.mark.parametrize("off_ms", (-HOUR_MS, HOUR_MS))
async def test_a_sweep_sets_the_clock_right(resources: Resources, worker: Worker, off_ms: int) -> None:
    """A machine that was suspended, a server whose clock was set: no commit is needed to learn of it."""
    at_ms = monotonic_ms()
    resources.clock.observe(wall_ms() + off_ms, sent_ms=at_ms, received_ms=at_ms)
    assert abs(resources.clock.now_ms() - wall_ms()) > HOUR_MS / 2

    await worker.sweep()

    assert abs(resources.clock.now_ms() - wall_ms()) < HOUR_MS / 2
