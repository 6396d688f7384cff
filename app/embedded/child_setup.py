"""Set-up of a child process between fork and exec: its user, and the signal that it gets when its parent ends.

Postgres refuses to run as root. For root it therefore runs as another user with one capability, to pass through folders
(`CAP_DAC_OVERRIDE`), because other users may not enter a project under `/root`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522

_linux = sys.platform == "linux"
# Loaded before any fork: a child between fork and exec must not take the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a function that a child runs before exec; the child then gets this signal when the thread that forked it ends."""
    parent = os.getpid()

    def arrange() -> None:
        if not _linux:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent ended in between, so no signal will come
            os._exit(1)

    return arrange


def run_as(uid: int, gid: int, *, then: Callable[[], None]) -> Callable[[], None]:
    """Return a function that a child of root runs before exec to become another user who may still pass through any folder.

    `then` runs last, since a change of user clears the signal that `end_with_parent` sets.
    """

    def become() -> None:
        if _linux:
            _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if _linux:
            _keep_one_capability(_CAP_DAC_OVERRIDE)
        then()

    return become


def _keep_one_capability(capability: int) -> None:
    """Drop every other capability, and keep this one over exec; if the kernel refuses, continue without it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    kept = 1 << capability
    # Effective, permitted, inheritable; the second triple is for capabilities from 32 on.
    data = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    _libc.capset(header, data)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
