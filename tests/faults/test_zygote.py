"""A process of the harness runs the product's own command; its clocks jump as ordered."""

import subprocess
import sys
from pathlib import Path

from app.settings import environment_with
from tests.faults.installation import Installation

JUMPED = """
from app.clock import Clock
from tests.faults import zygote
clock = Clock()
before = clock.now_ms()
zygote._skew(((0.0, 3600.0), (0.0, -1800.0)))
print(round((clock.now_ms() - before) / 1000))
"""


def test_skewed_clocks_jump() -> None:
    """The product's clock is off by the sum of the jumps that are over."""
    done = subprocess.run(
        [sys.executable, "-c", JUMPED],
        env=environment_with(),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    assert done.stdout == "1800\n"


async def test_a_fork_is_a_process_of_its_own_that_ends_by_a_signal(stage: Installation) -> None:
    """It serves on the harness's socket, dies at once of SIGKILL, and the zygote goes on to fork others."""
    first = await stage.start("api")
    async with stage.caller() as caller:
        alive = await caller.get("/healthz")
    first.kill()
    await first.over.wait()
    second = await stage.start("worker")

    assert alive.status == 200
    assert first.status == -9
    assert second.status is None
    assert second.pid != first.pid
