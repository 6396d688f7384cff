"""Code that a child runs between fork and exec: it arranges the child's end and gives up root."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

_linux = sys.platform == "linux"
# Loaded before any fork: a child between fork and exec must not take the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a function for a child to run before exec: the kernel then sends it this signal when the forking thread ends."""
    parent = os.getpid()

    def arrange() -> None:
        if not _linux:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call above, so no signal would ever come
            os._exit(1)

    return arrange


def run_as(uid: int, gid: int, *, then: Callable[[], None]) -> Callable[[], None]:
    """Return a function for a child of root to run before exec: it becomes this user, without capabilities, for good.

    `then` comes last: a change of user clears what `end_with_parent` arranged.
    """

    def become() -> None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if _linux:
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        then()

    return become
