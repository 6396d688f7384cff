"""`adjourn serve`, from the first line on the screen to the last."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import structlog

from app.archive import migrate
from app.config.keyring import open_keyring
from app.embedded import Servers, embedded_servers
from app.errors import CannotStart
from app.resources import open_resources
from app.settings import Settings
from app.supervisor import listener
from app.supervisor.preflight import check_servers, without_password
from app.supervisor.processes import Processes, worker_child
from app.supervisor.welcome import welcome

log = structlog.get_logger(__name__)


def serve(settings: Settings, *, with_worker: bool) -> None:
    """Run everything until SIGINT or SIGTERM. Raises `CannotStart`."""
    # Until the processes run, a polite end is an interrupt: what was started is stopped. A shell's `&` has SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        asyncio.run(check_servers(redis_url=settings.redis_url, database_url=settings.database_url))
        servers = stack.enter_context(_servers(settings))
        settings = _with_urls(settings, servers)
        _tell_servers(settings, servers)
        migrate.upgrade(_known(settings.database_url))
        _say("schema", f"version {migrate.newest_version()}")
        asyncio.run(_rehearse(settings))
        key = asyncio.run(_first_key(settings)) if servers.postgres is not None else None
        socket = stack.enter_context(listener.bind(settings.host, settings.port))
        settings = settings.model_copy(update={"port": socket.getsockname()[1]})
        metrics_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adjourn-metrics-")))
        worker = worker_child(settings, metrics_dir=metrics_dir) if with_worker else None
        processes = Processes(settings, listener=socket, metrics_dir=metrics_dir, worker=worker)
        announce = partial(_announce, settings, listener.url_of(socket), key=key, with_worker=with_worker)
        asyncio.run(processes.run(announce=announce, watch=_reviver(servers)))
        _say("stopped", "everything in flight was finished")


async def _first_key(settings: Settings) -> str | None:
    async with open_keyring(database_url=_known(settings.database_url), redis_url=settings.redis_url) as keyring:
        return await keyring.create_first()


async def _rehearse(settings: Settings) -> None:
    """Open once what each child will open, so that what cannot work is told here, once and in one line."""
    async with open_resources(settings):
        pass


@contextmanager
def _servers(settings: Settings) -> Iterator[Servers]:
    redis, postgres = settings.redis_url is None, settings.database_url is None
    if not redis and not postgres:
        yield Servers()
        return
    _say("data", f"{settings.var_dir.resolve()} (embedded servers; set REDIS_URL and DATABASE_URL to use your own)")
    with embedded_servers(settings.var_dir, redis=redis, postgres=postgres) as servers:
        yield servers


def _with_urls(settings: Settings, servers: Servers) -> Settings:
    return settings.model_copy(
        update={
            "webhook_allow_private": settings.private_webhooks_allowed,
            "redis_url": settings.redis_url or servers.redis_url,
            "database_url": settings.database_url or servers.database_url,
        }
    )


def _known(url: str | None) -> str:
    if url is None:
        msg = "no URL of Redis or Postgres"
        raise CannotStart(msg)
    return url


def _reviver(servers: Servers) -> Callable[[], None]:
    """Return what starts an embedded server again that has died; its data and its URL are the same."""

    def revive() -> None:
        for server in (servers.redis, servers.postgres):
            if server is not None and not server.running:
                log.warning("embedded server ended, starting it again", server=server.name)
                try:
                    server.launch()
                except CannotStart:
                    log.exception("embedded server does not start", server=server.name)

    return revive


def _tell_servers(settings: Settings, servers: Servers) -> None:
    for name, server, url in (
        ("redis", servers.redis, _known(settings.redis_url)),
        ("postgres", servers.postgres, _known(settings.database_url)),
    ):
        _say(name, without_password(url) if server is None else f"started (pid {server.pid}, log {server.log_path})")


def _announce(settings: Settings, url: str, *, key: str | None, with_worker: bool) -> None:
    _say("api", f"{url} ({settings.api_workers} process{'es' if settings.api_workers > 1 else ''})")
    _say("worker", "1 process" if with_worker else "none here; run `adjourn worker`")
    _say("docs", f"{url}/docs")
    _say("keys", "adjourn keys create, list, revoke")
    if key is not None:
        print(welcome(url, key))
    print("\nReady. Ctrl-C stops everything.", flush=True)


def _say(what: str, how: str) -> None:
    print(f"{what:>9}  {how}", flush=True)
