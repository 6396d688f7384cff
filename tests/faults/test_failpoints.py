"""A failpoint ends the process that it names, at the time that it names, and is nothing at all without the variable."""

import signal
import subprocess
import sys

import pytest

from app.failpoints import NAMES, armed_from
from app.settings import environment_with

COMES_BY = "from app.failpoints import failpoint\nfor i in range(3): failpoint('sweep.after_read'); print(i, flush=True)"


def _run(armed: str | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMES_BY],
        env=environment_with(adjourn_failpoint=armed),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@pytest.mark.parametrize(("armed", "printed"), (("sweep.after_read", ""), ("sweep.after_read:3", "0\n1\n")))
def test_it_kills_at_the_nth_time(armed: str, printed: str) -> None:
    """By SIGKILL: no handler, no `finally`, no flush."""
    done = _run(armed)

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == printed


@pytest.mark.parametrize("armed", (None, "sweep.after_commit", "any"))
def test_elsewhere_it_does_nothing(armed: str | None) -> None:
    """Without the variable, and at the places that it does not name."""
    done = _run(armed)

    assert (done.returncode, done.stdout) == (0, "0\n1\n2\n")


def test_a_name_that_there_is_not_is_refused() -> None:
    """A harness that waits for a failpoint which is never reached would prove nothing."""
    with pytest.raises(ValueError, match="names no failpoint"):
        armed_from("sweep.before_breakfast")


def test_every_failpoint_is_reached_somewhere() -> None:
    """Each name stands in the product, so that none is left behind when code moves, and no other does."""
    found = subprocess.run(
        ["grep", "-rhoE", "--include=*.py", r'failpoint\("[a-z_.]+"\)', "app"], capture_output=True, text=True, check=True
    ).stdout.split()

    assert set(found) == {f'failpoint("{name}")' for name in NAMES}
