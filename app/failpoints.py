"""Named places where a process ends or stops itself, for the fault harness alone (`tests/faults`).

`ADJOURN_FAILPOINT=archive.after_commit` kills the process (SIGKILL, no clean-up) when it comes there; `archive.after_commit:3`
the third time; `archive.after_commit:1:stop` stops it (SIGSTOP) until somebody lets it go on. Without the variable a failpoint
is a function that does nothing, bound once at import.
"""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from app.settings import armed_failpoint

ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

# Every place there is, in the order of a message's life: a name that is not here is a mistake, and would silently do nothing.
NAMES = (
    "ingest.before_commit",
    "redis.after_execution",
    "ingest.after_commit",
    "sweep.after_read",
    "sweep.after_commit",
    "archive.after_read",
    "archive.before_commit",
    "archive.after_commit",
    "archive.after_release",
    "deliver.after_claim",
    "deliver.before_post",
    "deliver.after_post",
    "deliver.after_record",
)


class Armed(NamedTuple):
    """Where, how many times to come by, and what then."""

    name: str
    nth: int = 1
    action: signal.Signals = signal.SIGKILL


class Failpoints:
    """What is armed in this process, and how often it came by."""

    def __init__(self, armed: Armed | None) -> None:
        self._armed = armed
        self._hits = 0

    def arm(self, armed: Armed | None) -> None:
        """Arm another one; for a process that was forked from one that had none."""
        self._armed, self._hits = armed, 0

    def hit(self, name: str) -> None:
        if self._armed is None or name != self._armed.name:
            return
        self._hits += 1
        if self._hits == self._armed.nth:
            os.kill(os.getpid(), self._armed.action)


def armed_from(text: str) -> Armed | None:
    """Read `name[:nth[:action]]`; empty is none. Raises `ValueError` for what is no failpoint."""
    if not text:
        return None
    name, _, rest = text.partition(":")
    nth, _, action = rest.partition(":")
    if name not in NAMES:
        msg = f"ADJOURN_FAILPOINT names no failpoint: {name!r}"
        raise ValueError(msg)
    return Armed(name, int(nth or 1), ACTIONS[action or "kill"])


def _nothing(name: str, /) -> None:
    del name


ANY = "any"
_text = armed_failpoint()
failpoints = Failpoints(None if _text == ANY else armed_from(_text))
failpoint: Callable[[str], None] = failpoints.hit if _text else _nothing
