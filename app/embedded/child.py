"""One server process: it ends with its parent, is waited for until it is ready, and stops in a bounded time.

A killed parent must not leave servers running. On Linux the kernel signals them when the parent dies (`PR_SET_PDEATHSIG`, a
clean stop for either server); on other systems, and before that takes effect, the next start finds servers that still run in
its folder and stops them.
"""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from app.embedded.account import SystemUser, becoming, end_with_parent, view_of
from app.errors import CannotStart

POLL_S = 0.01
START_S = 60.0
STOP_S = 30.0


class ChildServer(ABC):
    """A server on one data folder. The subclass defines its command, its check of readiness and its stop signal."""

    name: str
    programs: frozenset[str]
    stop_signal: signal.Signals

    def __init__(self, data_dir: Path, *, sockets: Path, log_path: Path, account: SystemUser | None) -> None:
        self.data_dir = data_dir
        self.sockets = sockets
        self.log_path = log_path
        self.account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, or `None` while it is not running."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start and wait until it answers. Raises `CannotStart` with the last line of its log."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start without waiting, so that two servers can start at the same time."""
        if self.running:
            return
        self._end_strays()
        self._prepare()
        with self.log_path.open("ab") as log, view_of(self.account, self.data_dir, self.sockets) as view:
            self._process = self._spawn(self._command(*view.names), log=log, descriptors=view.descriptors)

    def _spawn(self, command: Sequence[str], *, log: IO[bytes], descriptors: tuple[int, ...]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                pass_fds=descriptors,
                # A group of its own: Ctrl-C reaches only the parent, which stops its children in order.
                process_group=0,
                preexec_fn=becoming(self.account, then=end_with_parent(self.stop_signal)),
            )
        except (OSError, subprocess.SubprocessError) as error:
            msg = f"{self.name} cannot be run: {error}"
            raise CannotStart(msg) from error

    def wait_ready(self) -> None:
        if not _wait_until(lambda: self._ready() or not self.running, within_s=START_S) or not self.running:
            self.kill()
            msg = f"{self.name} did not start: {self._last_log_line()} (see {self.log_path})"
            raise CannotStart(msg)

    def stop(self) -> None:
        """Stop cleanly; after 30 s, kill. Stopping a server that does not run is no error."""
        if self._process is None or not self.running:
            return
        # A stopped process (SIGSTOP in a fault test) handles no signal until it continues.
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it like a crash, with SIGKILL."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    @abstractmethod
    def check(self) -> None:
        """Raise `CannotStart` if this server must not start on its folder. Changes nothing."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data folder ready; no process works on it."""

    @abstractmethod
    def _command(self, data_dir: str, sockets: str) -> Sequence[str]:
        """Give the command line, with both folders as the server names them."""

    @abstractmethod
    def _ready(self) -> bool: ...

    def _end_strays(self) -> None:
        """Stop servers that an earlier, killed parent left running on this folder.

        Only the leader gets the stop signal, since it means something else to Postgres's other processes. All of them must
        have ended before the next start: an orphan that still writes would corrupt the data.
        """
        for process in self._strays():
            with suppress(psutil.Error):
                if "".join(process.cmdline()[:1]).startswith("/"):
                    process.send_signal(self.stop_signal)
        if not _wait_until(lambda: not self._strays(), within_s=STOP_S):
            for process in self._strays():
                with suppress(psutil.Error):
                    process.kill()

    def _strays(self) -> list[psutil.Process]:
        # Recognised by their working directory, not by a pid file: after a reboot another process may have that pid.
        processes = psutil.process_iter(["name", "cwd"])
        return [each for each in processes if each.info["name"] in self.programs and each.info["cwd"] == str(self.data_dir)]

    def _last_log_line(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it ended without a message"


def _wait_until(met: Callable[[], bool], *, within_s: float) -> bool:
    """Poll until `met`; returns whether it was in time."""
    for _ in range(int(within_s / POLL_S)):
        if met():
            return True
        time.sleep(POLL_S)
    return met()
