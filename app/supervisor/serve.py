"""`adjourn serve`: starts the servers, the schema, the first key, the socket and the processes, and prints each step.

It refuses to start anything that cannot work, with one line that says why. All API processes share the listening socket, so
that no connection is refused while processes are replaced.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import structlog

from app.archive.engine import newest_schema_version
from app.config.change import open_keyring
from app.delivery.secret_box import SecretBox, new_secrets_key
from app.embedded import Servers, embedded_servers
from app.errors import CannotStart
from app.log import logged_life
from app.resources import open_resources
from app.settings import SECRETS_KEY_FILE, Settings
from app.supervisor.fork import preload
from app.supervisor.preflight import check_servers, upgrade_schema, without_password
from app.supervisor.processes import Processes

_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Listen on `host` and `port`; 0 takes a free port. Raises `CannotStart` if that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        msg = f"cannot listen on {host}: {error.strerror}"
        raise CannotStart(msg) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(_reason(error, host=host, port=port)) from None
    listener.settimeout(0)
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The URL that reaches it from this machine."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"{'https' if tls else 'http'}://{reachable}:{port}"


def _reason(error: OSError, *, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another with --port or PORT"
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for root: choose one from 1024 with --port or PORT"
    return f"cannot listen on {host}:{port}: {error.strerror}"


_FIRST_BOT = "demo"
log = structlog.get_logger(__name__)


def serve(settings: Settings, *, metrics_dir: Path, with_worker: bool, main: Callable[[], object]) -> None:
    """Run everything until SIGINT or SIGTERM. Raises `CannotStart`.

    `metrics_dir` is PROMETHEUS_MULTIPROC_DIR already, which the library reads when it is imported. `main` is the command line,
    which forks of this process run.
    """
    # Until the processes run, both signals raise KeyboardInterrupt, which stops what was started. A shell's `&` ignores SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        asyncio.run(check_servers(redis_url=settings.redis_url, database_url=settings.database_url))
        servers = stack.enter_context(_servers(settings))
        settings = _with_urls(settings, servers)
        box = SecretBox.of(settings)
        _print_servers(settings, servers)
        upgrade_schema(_required(settings.database_url), box)
        _print_step("schema", f"version {newest_schema_version()}")
        asyncio.run(_try_resources(settings))
        key = asyncio.run(_first_key(settings, embedded=servers.postgres is not None))
        listeners = [stack.enter_context(bind(settings.host, port)) for port in _ports(settings)]
        numbers = [listener.getsockname()[1] for listener in listeners]
        settings = settings.model_copy(update=dict(zip(("port", "operations_port"), numbers, strict=False)))
        stack.enter_context(logged_life(settings))
        processes = Processes(settings, listeners=listeners, metrics_dir=metrics_dir, with_worker=with_worker, main=main)
        urls = [url_of(listener, tls=settings.tls_cert_file is not None) for listener in listeners]
        announce = partial(_announce, settings, urls, key=key, with_worker=with_worker)
        asyncio.run(processes.run(announce=announce, watch=_reviver(servers)))
        _print_step("stopped", "all requests and jobs in flight have ended")


async def _first_key(settings: Settings, *, embedded: bool) -> str | None:
    """Save the admin key of the settings; without one, make and return one for an embedded Postgres that has none."""
    if settings.admin_key is None and not embedded:
        return None
    async with open_keyring(database_url=_required(settings.database_url), redis_url=settings.redis_url) as keyring:
        if settings.admin_key is None:
            return await keyring.create_first()
        await keyring.ensure(settings.admin_key)
        return None


async def _try_resources(settings: Settings) -> None:
    """Open once the resources that each child opens, so that a failure is reported once and in one line."""
    async with open_resources(settings):
        pass


@contextmanager
def _servers(settings: Settings) -> Iterator[Servers]:
    redis, postgres = settings.redis_url is None, settings.database_url is None
    if not redis and not postgres:
        preload()
        yield Servers()
        return
    _print_step("data", f"{settings.var_dir.resolve()} (embedded servers; set REDIS_URL and DATABASE_URL to use your own)")
    bound = settings.embedded_redis_max_mb
    with embedded_servers(
        settings.var_dir, redis=redis, postgres=postgres, redis_max_memory_mb=bound, meanwhile=preload
    ) as servers:
        yield servers


def _with_urls(settings: Settings, servers: Servers) -> Settings:
    return settings.model_copy(
        update={
            "webhook_allow_private": settings.private_webhooks_allowed,
            "redis_url": settings.redis_url or servers.redis_url,
            "database_url": settings.database_url or servers.database_url,
            "secrets_key_file": secrets_key_file(settings),
        }
    )


def secrets_key_file(settings: Settings) -> Path | None:
    """The file of the settings; where Postgres is embedded and no key is given, the file in their folder."""
    if settings.database_url is not None or settings.secret_keys:
        return settings.secrets_key_file
    file = settings.var_dir / SECRETS_KEY_FILE
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file
    with os.fdopen(descriptor, "w") as written:
        written.write(f"{new_secrets_key()}\n")
    return file


def _required(url: str | None) -> str:
    if url is None:
        msg = "no URL of Redis or Postgres"
        raise CannotStart(msg)
    return url


def _reviver(servers: Servers) -> Callable[[], None]:
    """Return a function that restarts an embedded server that has ended; its data and its URL stay the same."""

    def revive() -> None:
        for server in (servers.redis, servers.postgres):
            if server is not None and not server.running:
                log.warning("embedded server ended, restarting it", server=server.name)
                try:
                    server.launch()
                except CannotStart:
                    log.exception("embedded server cannot be restarted", server=server.name)

    return revive


def _print_servers(settings: Settings, servers: Servers) -> None:
    for name, server, url in (
        ("redis", servers.redis, _required(settings.redis_url)),
        ("postgres", servers.postgres, _required(settings.database_url)),
    ):
        _print_step(name, without_password(url) if server is None else f"started (pid {server.pid}, log {server.log_path})")


def _ports(settings: Settings) -> list[int]:
    return [settings.port] if settings.operations_port is None else [settings.port, settings.operations_port]


def _announce(settings: Settings, urls: list[str], *, key: str | None, with_worker: bool) -> None:
    url = urls[0]
    _print_step("api", f"{url} ({settings.api_workers} process{'es' if settings.api_workers > 1 else ''})")
    _print_step("worker", "1 process" if with_worker else "none here; run `adjourn worker`")
    _print_step("docs", f"{urls[-1]}/docs")
    _print_step("console", f"{url}/console/ (sign in with a key)")
    _print_step("keys", "adjourn keys create, list, revoke")
    if key is not None:
        print(_first_steps(url, key))
    print("\nReady. Ctrl-C stops everything.", flush=True)


def _print_step(name: str, text: str) -> None:
    print(f"{name:>9}  {text}", flush=True)


def _first_steps(url: str, key: str) -> str:
    commands = "\n".join(f"  {command}" for command in _curl_lines(url, key))
    return f"""
An admin key was made. It is shown only now; only its hash is stored:

  {key}

Make a bot, post a message to it, look at its open sessions:

{commands}"""


def _curl_lines(url: str, key: str) -> list[str]:
    """Three commands for a shell: make a bot, post a message, show the open sessions."""
    bots = f"{url}/v1/bots"
    message = {"user_id": "ann", "role": "user", "text": "Hello"}
    return [
        _curl(bots, key, body={"id": _FIRST_BOT}),
        _curl(f"{bots}/{_FIRST_BOT}/messages", key, body=message),
        _curl(f"{bots}/{_FIRST_BOT}/live", key),
    ]


def _curl(url: str, key: str, *, body: object = None) -> str:
    words = ["curl", "-sS", url, "-H", f"Authorization: Bearer {key}"]
    if body is not None:
        words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(words)
