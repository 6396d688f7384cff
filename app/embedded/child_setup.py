"""What the kernel does to a child between fork and exec: who it runs as, and what ends it.

Postgres refuses to run as root. For root it therefore runs as another user, who keeps one capability, to pass through
folders (`CAP_DAC_OVERRIDE`), because a project under `/root` is closed to everybody else.
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
    """Return what a child runs before exec so that it gets this signal when the thread that forked it ends."""
    parent = os.getpid()

    def arrange() -> None:
        if not _linux:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it died in between, and nobody would tell
            os._exit(1)

    return arrange


def run_as(uid: int, gid: int, *, then: Callable[[], None]) -> Callable[[], None]:
    """Return what a child of root runs before exec to become another user who may still pass through any folder.

    `then` comes last: a change of user clears what `end_with_parent` arranged.
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
    """Drop all but this one, and hand it on over exec; where the kernel refuses, go on without it."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    kept = 1 << capability
    # Effective, permitted, inheritable; the second triple is for capabilities from 32 on.
    data = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    _libc.capset(header, data)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
