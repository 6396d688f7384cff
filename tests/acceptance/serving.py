"""`adjourn serve` as a user runs it: a process with output, in a folder of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
from redis import Redis
from redis.exceptions import RedisError

from app.live import keys
from app.settings import environment_with

START_S = 60
STOP_S = 40


class Serving:
    """One running `adjourn serve`, ready to answer."""

    def __init__(self, process: subprocess.Popen[str], var_dir: Path) -> None:
        self.process = process
        self.var_dir = var_dir
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def url(self) -> str:
        return self._found(r"api +(http://\S+)")

    @property
    def key(self) -> str:
        return self._found(r"Bearer (\S+?)['\"]")

    @property
    def curl_lines(self) -> list[str]:
        return [line.strip() for line in self.output.splitlines() if line.strip().startswith("curl ")]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=10)

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The living children, by what they do: api, worker, valkey-server, postgres."""
        found: dict[str, list[psutil.Process]] = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                part = child.name().removeprefix("adjourn ")
                if not part.startswith("python"):  # a process that does not run its own program yet
                    found.setdefault(part, []).append(child)
        return found

    def well(self) -> bool:
        """Whether `/readyz?strict=1` answers 200, every API process has reported ready, and every worker has a heartbeat."""
        try:
            ready = httpx.get(f"{self.url}/readyz", params={"strict": True}, timeout=5).status_code == 200
            with Redis(unix_socket_path=str(self.var_dir / "run" / "redis.sock")) as redis:
                ticking = {int(name.rpartition(b"-")[2]) for name in redis.hgetall(keys.HEARTBEATS)}
        except (httpx.HTTPError, RedisError):
            return False
        reported = self._at_start | {int(pid) for pid in re.findall(r"process is ready again.*?pid=(\d+)", self.output)}
        found = self.processes()
        return (
            ready
            and {child.pid for child in found.get("api", [])} <= reported
            and {child.pid for child in found.get("worker", [])} <= ticking
        )

    def wait_ready(self) -> None:
        until(lambda: "Ready." in self.output or self.process.poll() is not None, within_s=START_S)
        assert self.process.poll() is None, self.output
        self._at_start = {child.pid for child in self.processes()["api"]}

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        code = self.process.wait(STOP_S)
        self._reader.join(5)
        return code

    def close(self) -> None:
        """Read to the end, which comes when the last child that shares the output has ended."""
        self._reader.join(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(iter(self.process.stdout.readline, ""))

    def _found(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found is not None, self.output
        return found[1]


@contextmanager
def serving(var_dir: Path, *arguments: str, ignored: str = "", **settings: object) -> Iterator[Serving]:
    """Run `adjourn serve` on a free port, with its output; remaining processes are ended.

    `ignored` names a signal that the shell which starts it ignores, as with `&` (INT) and `nohup` (HUP).
    """
    shell = ("sh", "-c", f'trap "" {ignored}; exec "$@"', "sh") if ignored else ()
    unset: dict[str, object] = {"redis_url": None, "database_url": None}
    process = subprocess.Popen(
        [*shell, sys.executable, "-m", "app.cli", "serve", "--port", "0", "--var-dir", str(var_dir), *arguments],
        env=environment_with(**unset | settings),
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_hear_hangups,  # noqa: PLW1509 - it takes no lock
    )
    running = Serving(process, var_dir)
    try:
        running.wait_ready()
        yield running
    finally:
        if process.poll() is None:
            running.stop(signal.SIGTERM)
        running.close()


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="adj-", ignore_cleanup_errors=True) as path:
        yield Path(path)


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def until(met: Callable[[], bool], *, within_s: float = 20) -> None:
    """Poll until `met`; fail when the time is up."""
    for _ in range(int(within_s / 0.05)):
        if met():
            return
        time.sleep(0.05)
    assert met()


def _hear_hangups() -> None:
    """Tests may run under nohup, which `adjourn serve` respects."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
