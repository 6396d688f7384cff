"""A process with everything imported that forks the product's processes on demand: `python -m tests.faults.zygote`.

Hundreds of processes are killed by the harness, and each would import the product for a second before it is worth killing. A
fork has that behind it and is otherwise what `adjourn api` and `adjourn worker` are: a process of its own, with its own
connections, that runs the same command and dies of the same SIGKILL. Orders come in as lines of JSON on standard input, and
reports go out the same way: `{"forked": pid}` for each order, `{"ready": pid}` when an API process answers requests, and
`{"ended": pid, "status": …}` when a process ends.
"""

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from types import SimpleNamespace

import msgspec
from msgspec import Struct

import app.main
import app.worker  # noqa: F401 - so that no fork must import it
from app import cli, clock
from app.embedded.account import end_with_parent
from app.failpoints import armed_from, failpoints


class Order(Struct, frozen=True):
    """A process to fork. `part` is `api` or `worker`; `armed` a failpoint; `skew` what its clocks shall do, in s: at, by."""

    part: str
    settings: dict[str, str]
    log: str
    descriptor: int = -1
    armed: str = ""
    skew: tuple[tuple[float, float], ...] = ()


def main() -> None:
    """Fork until standard input ends; then all forks end with this process."""
    selector = selectors.DefaultSelector()
    wakes, woken = socket.socketpair()
    for end in (wakes, woken):
        end.settimeout(0)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno())
    selector.register(wakes, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    rest = b""
    while True:
        for key, _ in selector.select():
            if key.fileobj is wakes:
                wakes.recv(4096)
                _reap()
                continue
            if isinstance(key.fileobj, int):
                _report_ready(key.fileobj, key.data)
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                continue
            data = os.read(0, 65_536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                order = msgspec.json.decode(line, type=Order)
                notice, announcement = os.pipe()
                pid = _fork(order, ready_fd=announcement)
                os.close(announcement)
                selector.register(notice, selectors.EVENT_READ, pid)
                _report({"forked": pid})


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _report({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _report_ready(notice: int, pid: int) -> None:
    """A byte means that requests are answered; the end of the pipe, that the process ended or is a worker."""
    if os.read(notice, 1):
        _report({"ready": pid})


def _report(event: dict[str, int]) -> None:
    os.write(1, msgspec.json.encode(event) + b"\n")


def _fork(order: Order, *, ready_fd: int) -> int:
    arrange_end = end_with_parent(signal.SIGKILL)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        arrange_end()
        _become(order)
        if order.part == "api":
            cli.api(fd=order.descriptor, ready_fd=ready_fd)
        else:
            cli.worker()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - the fork would continue as a second zygote
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _become(order: Order) -> None:
    """Drop the zygote's state, and continue like a process that was just started with these settings."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number in (1, 2):
        os.dup2(log, number)
    os.environ.update(order.settings)
    failpoints.arm(armed_from(order.armed))
    if order.skew:
        _skew(order.skew)


def _skew(jumps: tuple[tuple[float, float], ...]) -> None:
    """Let this process's clocks jump: after each of so many seconds, by so many."""
    began = time.monotonic()

    def off_s() -> float:
        since = time.monotonic() - began
        return sum(by for at, by in jumps if since >= at)

    # Only in `app.clock`: other users of clocks, the event loop above all, are not skewed.
    clock.time = SimpleNamespace(  # type: ignore[assignment, attr-defined]
        monotonic=lambda: time.monotonic() + off_s(),
        time=lambda: time.time() + off_s(),
        time_ns=lambda: time.time_ns() + int(off_s() * 1e9),
    )


if __name__ == "__main__":
    main()
