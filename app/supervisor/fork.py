"""Processes forked from the supervisor, which has the product imported: none of them imports it again, and all share its memory.

A fork is as much like a process that was just started as can be had: its own process group, environment, signal handlers and
arguments, and no open file of the supervisor but the output and those it is meant to have. It runs deep in the supervisor's
stack and never returns there. Refused where the supervisor has other threads (a lock that one of them holds would stay locked
in the fork for ever), or where the system has no descriptors of processes.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from app.embedded.account import end_with_parent
from app.settings import replace_environment

_STANDARD = 3  # input, output and errors


def preload() -> None:
    """Import what processes need, and keep the collector from writing to objects that forks share."""
    import app.main
    import app.worker  # noqa: F401

    gc.collect()
    gc.freeze()


def can_fork() -> bool:
    return hasattr(os, "pidfd_open") and threading.active_count() == 1


class ForkedProcess:
    """The pid of a fork, signals to it and its end, as `asyncio.subprocess.Process` has them for a program."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._watched = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._watched, self._reap)

    async def wait(self) -> int | None:
        await self._ended.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Raises `ProcessLookupError` once it has ended: its pid may be another process's by then."""
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._watched, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        asyncio.get_running_loop().remove_reader(self._watched)
        os.close(self._watched)
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


def fork(
    main: Callable[[], object], arguments: Sequence[str], *, environment: Mapping[str, str], keeps: Sequence[int]
) -> ForkedProcess:
    """Fork a process that runs `main` with these arguments and environment, and keeps these descriptors. Raises `OSError`."""
    arrange_end = end_with_parent(signal.SIGTERM)
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal that came before the fork has handlers of its own would be reported to the supervisor's event loop.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(main, arguments, environment=environment, keeps=keeps, arrange_end=arrange_end, unblocked=blocked)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    try:
        return ForkedProcess(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _become(
    main: Callable[[], object],
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    keeps: Sequence[int],
    arrange_end: Callable[[], None],
    unblocked: set[signal.Signals | int],
) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)
        arrange_end()
        _reset_signals()
        _close_all_but(keeps)
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        replace_environment(environment)
        sys.argv = list(arguments)
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - it would continue as a second supervisor
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reset_signals() -> None:
    """As a new program has them: what is ignored stays ignored, all else has its default."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _close_all_but(keeps: Sequence[int]) -> None:
    """Each number stays taken, by a file that is empty: an object of the supervisor that goes later closes what it had opened."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in [int(each.name) for each in Path("/dev/fd").iterdir()]:
        if number >= _STANDARD and number not in keeps:
            with suppress(OSError):  # the descriptor of the list itself
                os.fstat(number)
                os.dup2(null, number, inheritable=False)
