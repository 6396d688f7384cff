"""Named places where a process kills or stops itself, for the fault harness only (`tests/faults`).

`ADJOURN_FAILPOINT=archive.after_commit` kills the process (SIGKILL, no clean-up) at that place; `archive.after_commit:3` the
third time; `archive.after_commit:1:stop` stops it (SIGSTOP) until it is sent SIGCONT. Without the variable a failpoint is a
function that does nothing, bound once at import.
"""

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from app.settings import armed_failpoint

ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

# Every failpoint, in the order of a message's life. Other names are refused, since they would silently do nothing.
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
    "erase.after_begin",
    "erase.after_close",
    "erase.after_rows",
    "erase.after_redis",
    "deliver.after_claim",
    "deliver.before_post",
    "deliver.after_post",
    "deliver.after_record",
)


class Armed(NamedTuple):
    """A failpoint, at which hit it acts, and the signal."""

    name: str
    nth: int = 1
    action: signal.Signals = signal.SIGKILL


class Failpoints:
    """The armed failpoint of this process, and its hits."""

    def __init__(self, armed: Armed | None) -> None:
        self._armed = armed
        self._hits = 0

    def arm(self, armed: Armed | None) -> None:
        """Arm another one, in a process that was forked from an unarmed one."""
        self._armed, self._hits = armed, 0

    def hit(self, name: str) -> None:
        if self._armed is None or name != self._armed.name:
            return
        self._hits += 1
        if self._hits == self._armed.nth:
            os.kill(os.getpid(), self._armed.action)


def armed_from(text: str) -> Armed | None:
    """Read `name[:nth[:action]]`; None for an empty text. Raises `ValueError` for an unknown name."""
    if not text:
        return None
    name, _, tail = text.partition(":")
    nth, _, action = tail.partition(":")
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
