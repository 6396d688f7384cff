"""Both embedded servers of one folder, started together and stopped in reverse order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from app.embedded.folder import folder_lock, socket_folder
from app.embedded.postgres_server import PostgresServer
from app.embedded.redis_server import RedisServer
from app.errors import CannotStart


class Servers(Struct, frozen=True):
    """The servers that were started; `None` for one that was not asked for."""

    redis: RedisServer | None = None
    postgres: PostgresServer | None = None

    @property
    def redis_url(self) -> str | None:
        return None if self.redis is None else self.redis.url

    @property
    def database_url(self) -> str | None:
        return None if self.postgres is None else self.postgres.url

    @property
    def redis_pid(self) -> int | None:
        return None if self.redis is None else self.redis.pid

    @property
    def postgres_pid(self) -> int | None:
        return None if self.postgres is None else self.postgres.pid


def urls_of(var_dir: Path) -> tuple[str, str]:
    """The URLs of the Redis and the Postgres that run on this folder. Raises `CannotStart` if they do not run."""
    var_dir = var_dir.resolve()
    sockets = socket_folder(var_dir) if var_dir.is_dir() else var_dir
    redis = RedisServer(var_dir, sockets=sockets, durable=True)
    postgres = PostgresServer(var_dir, sockets=sockets, durable=True)
    if not (redis.socket_path.exists() and postgres.socket_path.exists()):
        msg = f"nothing runs on {var_dir}: start `adjourn serve` there, or set REDIS_URL and DATABASE_URL"
        raise CannotStart(msg)
    return redis.url, postgres.url


@contextmanager
def embedded_servers(var_dir: Path, *, redis: bool, postgres: bool, durable: bool = True) -> Iterator[Servers]:
    """Run the servers on the data under `var_dir`, and stop them cleanly at the end. Raises `CannotStart`.

    Call it in the main thread: the kernel ends the servers when the thread that started them ends. `durable=False` skips every
    flush to disk, which only a test may do.
    """
    var_dir = var_dir.resolve()
    for name in ("", "log"):
        (var_dir / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(folder_lock(var_dir / "lock"))
        sockets = socket_folder(var_dir)
        stack.callback(_remove_if_empty, sockets)
        redis_server = RedisServer(var_dir, sockets=sockets, durable=durable) if redis else None
        postgres_server = PostgresServer(var_dir, sockets=sockets, durable=durable) if postgres else None
        # The stop is registered before the start, so that a start that fails half-way leaves nothing running.
        started = [server for server in (redis_server, postgres_server) if server is not None]
        for server in started:
            stack.callback(server.stop)
            server.launch()
        for server in started:
            server.wait_ready()
        yield Servers(redis=redis_server, postgres=postgres_server)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
