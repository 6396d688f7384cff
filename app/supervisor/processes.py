"""The API processes and the worker of one `adjourn serve`, as a group; and the health checks of containers."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import multiprocess
from redis.exceptions import RedisError

from app.embedded import urls_of
from app.errors import CannotStart
from app.live import keys
from app.live.server import open_redis
from app.settings import Settings, environment_with
from app.supervisor.child import Child, log_error
from app.supervisor.preflight import without_password

_PROGRAM = ("-m", "app.cli")
_WATCH_S = 1.0
# Added to the grace of a process: time to close its connections and to end.
_MARGIN_S = 5.0
log = structlog.get_logger(__name__)


class Processes:
    """Keeps them running until a signal, then stops the API before the worker, so that its last entries are still worked on."""

    def __init__(
        self,
        settings: Settings,
        *,
        listeners: Sequence[socket.socket],
        metrics_dir: Path,
        with_worker: bool,
        main: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._listeners = listeners
        self._metrics_dir = metrics_dir
        self._main = main
        self._apis = [self._api(number) for number in range(settings.api_workers)]
        self._worker = self._make_worker() if with_worker else None

    async def run(self, *, announce: Callable[[], None], watch: Callable[[], None]) -> None:
        """Run until SIGINT, SIGTERM or SIGHUP. `announce` is called once the API answers, `watch` every second."""
        stop, reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup, a closed terminal is no reason to stop
            loop.add_signal_handler(signal.SIGHUP, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, reload.set)
        children = [*self._apis, *([self._worker] if self._worker else [])]
        tasks = [asyncio.create_task(child.keep(), name=child.name) for child in children]
        tasks.append(asyncio.create_task(_repeat(watch), name="watch"))
        try:
            if await self._started(stop):
                announce()
                tasks.append(asyncio.create_task(_on_each(reload, self._replace_all), name="reload"))
                await stop.wait()
        finally:
            await self._stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _started(self, stop: asyncio.Event) -> bool:
        """Wait until every API process is ready; False if stopped first. Raises `CannotStart` if one cannot start."""
        for child in self._apis:
            events = (child.ready, child.failed_to_start, stop)
            waits = [asyncio.ensure_future(event.wait()) for event in events]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if stop.is_set():
                return False
            if child.failed_to_start.is_set():
                msg = f"process {child.name} ended while it started; the lines above say why"
                raise CannotStart(msg)
        return True

    async def _replace_all(self) -> None:
        """One by one: all but one serve at any time, and the socket stays open."""
        for child in (*self._apis, *([self._worker] if self._worker else [])):
            log.info("replacing process", child=child.name)
            await child.replace()

    async def _stop(self) -> None:
        # The supervisor closes its descriptors too, so that the kernel refuses connections once the processes have closed theirs.
        for listener in self._listeners:
            listener.close()
        grace_s = self._settings.drain_delay_s + self._settings.shutdown_grace_s + _MARGIN_S
        await asyncio.gather(*(child.stop(within_s=grace_s) for child in self._apis))
        if self._worker is not None:
            await self._worker.stop(within_s=2 * self._settings.shutdown_grace_s + _MARGIN_S)

    def _api(self, number: int) -> Child:
        descriptors = tuple(listener.fileno() for listener in self._listeners)
        arguments = [word for pair in zip(("--fd", "--operations-fd"), map(str, descriptors), strict=False) for word in pair]
        return self._child(f"api-{number + 1}", ("api", *arguments), name="api", inherits=descriptors, announces=True)

    def _make_worker(self) -> Child:
        return self._child("worker", ("worker",), name="worker", inherits=(), announces=False)

    def _child(self, child: str, arguments: tuple[str, ...], *, name: str, inherits: tuple[int, ...], announces: bool) -> Child:
        return Child(
            child,
            [*_PROGRAM, *arguments],
            environment=child_environment(self._settings, name=name, metrics_dir=self._metrics_dir),
            inherits=inherits,
            announces=announces,
            on_end=metrics_cleaner(self._metrics_dir),
            main=self._main,
        )


def child_environment(settings: Settings, *, name: str, metrics_dir: Path) -> dict[str, str]:
    """The settings as the supervisor resolved them: a child must not resolve its own `.env` differently."""
    chosen = {
        "redis_url": settings.redis_url,
        "database_url": settings.database_url,
        "database_read_url": settings.database_read_url,
        "var_dir": settings.var_dir,
        "host": settings.host,
        "port": settings.port,
        "operations_port": settings.operations_port,
        "webhook_allow_private": settings.webhook_allow_private,
        "secrets_key": settings.secrets_key,
        "secrets_key_file": settings.secrets_key_file,
        "process_name": name,
        "prometheus_multiproc_dir": metrics_dir,
    }
    return environment_with(**chosen)


def metrics_cleaner(metrics_dir: Path) -> Callable[[int], None]:
    """Return a function that removes a dead process's gauges from the metrics; its counters stay."""

    def clean(pid: int) -> None:
        multiprocess.mark_process_dead(pid, str(metrics_dir))

    return clean


async def _repeat(work: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_WATCH_S)
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the next check may succeed
            log_error("check of the servers failed", error)


async def _on_each(event: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await event.wait()
        event.clear()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the next signal must be handled
            log_error("replacing processes failed", error)


_TIMEOUT_S = 3.0
# A worker writes its heartbeat every second.
_FRESH_MS = 10_000


def check_api(settings: Settings) -> str:
    """The body of /readyz; raises `CannotStart` if it does not answer 200."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - connected to, not listened on
    url = f"{'https' if settings.tls_cert_file else 'http'}://{host}:{settings.port}/readyz"
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE  # the certificate is for another name than this machine's own
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=tls) as answer:  # noqa: S310 - one of the two
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        msg = f"{url} answers {refusal.code}: {refusal.read().decode()}"
        raise CannotStart(msg) from None
    except OSError as error:
        msg = f"{url} does not answer: {error}"
        raise CannotStart(msg) from None


async def _heartbeats(redis_url: str) -> tuple[int, dict[bytes, bytes]]:
    """The time of Redis, in seconds, and the heartbeat of each worker."""
    redis: Any  # redis-py's types name every form that a reply may have
    async with open_redis(redis_url, timeout_s=_TIMEOUT_S) as redis:
        seconds, _ = await redis.time()
        return seconds, await redis.hgetall(keys.HEARTBEATS)


def check_worker(settings: Settings) -> str:
    """Return "ok" if a worker of this machine has a recent heartbeat; raises `CannotStart` if none has."""
    redis_url = settings.redis_url or urls_of(settings.var_dir)[0]
    try:
        seconds, heartbeats = asyncio.run(_heartbeats(redis_url))
    except (RedisError, ValueError) as error:
        msg = f"REDIS_URL {without_password(redis_url)} cannot be used: {error}"
        raise CannotStart(msg) from None
    mine = [int(at_ms) for name, at_ms in heartbeats.items() if name.decode().startswith(f"{socket.gethostname()}-")]
    if not any(seconds * 1000 - at_ms < _FRESH_MS for at_ms in mine):
        msg = f"no worker of {socket.gethostname()} has a heartbeat of the last {_FRESH_MS // 1000} s"
        raise CannotStart(msg)
    return "ok"
