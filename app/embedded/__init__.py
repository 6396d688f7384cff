"""A real Redis and a real Postgres as child processes, used when no URL is set. Needs the extra `adjourn[embedded]`.

Owns everything under `var/`: `redis/` and `postgres/` (data), `log/`, `run/` (sockets), `lock` (held while in use).
Promises that data outlives every restart, crash and upgrade, and that other users of the machine reach none of it.
Refuses a TCP port, a second user of the same folder, data of a server that it cannot read, and any server but those of the extra.
Both servers of a folder start together and stop in reverse order.

    with embedded_servers(Path("var"), redis=True, postgres=True) as servers:
        servers.redis_url, servers.database_url
        servers.redis.kill(); servers.redis.start()      # for tests of faults
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from msgspec import Struct

from app.embedded.account import folder_lock, open_var, server_account, socket_folder, was_used
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
    account = server_account()
    # Without a lock no start has been here, and nothing may be made in the folder.
    sockets = socket_folder(var_dir, account=account) if was_used(var_dir) else var_dir
    redis = RedisServer(var_dir, sockets=sockets, account=account, durable=True)
    postgres = PostgresServer(var_dir, sockets=sockets, account=account, durable=True)
    if not (redis.socket_path.exists() and postgres.socket_path.exists()):
        msg = f"nothing runs on {var_dir}: start `adjourn serve` there, or set REDIS_URL and DATABASE_URL"
        raise CannotStart(msg)
    return redis.url, postgres.url


@contextmanager
def embedded_servers(
    var_dir: Path,
    *,
    redis: bool,
    postgres: bool,
    durable: bool = True,
    redis_max_memory_mb: int | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[Servers]:
    """Run the servers on the data under `var_dir`, and stop them cleanly at the end. Raises `CannotStart`.

    Call it in the main thread: the kernel ends the servers when the thread that started them ends. `durable=False` skips every
    flush to disk, which only a test may do. `meanwhile` is called while the servers start.
    """
    var_dir = var_dir.resolve()
    account = server_account()
    open_var(var_dir)
    with ExitStack() as stack:
        stack.enter_context(folder_lock(var_dir))
        sockets = socket_folder(var_dir, account=account)
        stack.callback(_remove_if_empty, sockets)
        servers = Servers(
            redis=RedisServer(var_dir, sockets=sockets, account=account, durable=durable, max_memory_mb=redis_max_memory_mb)
            if redis
            else None,
            postgres=PostgresServer(var_dir, sockets=sockets, account=account, durable=durable) if postgres else None,
        )
        started = [server for server in (servers.redis, servers.postgres) if server is not None]
        # All are checked before the first one changes its folder.
        for server in started:
            server.check()
        # The stop is registered before the start, so that a start that fails half-way leaves nothing running.
        for server in started:
            stack.callback(server.stop)
            server.launch()
        meanwhile()
        for server in started:
            server.wait_ready()
        yield servers


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
