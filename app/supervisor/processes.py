"""The API processes and the worker of one `adjourn serve`, as a group."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from app.errors import CannotStart
from app.settings import Settings, environment_with
from app.supervisor.child import Child, complain

_PROGRAM = ("-m", "app.cli")
_WATCH_S = 1.0
# What a process needs beyond its grace to close its connections and to end.
_MARGIN_S = 5.0
log = structlog.get_logger(__name__)


class Processes:
    """Keeps them alive until a signal; then stops the API first, so that the worker sees the last of its entries."""

    def __init__(self, settings: Settings, *, listener: socket.socket, metrics_dir: Path, worker: Child | None) -> None:
        self._settings = settings
        self._listener = listener
        self._metrics_dir = metrics_dir
        self._apis = [self._api(number) for number in range(settings.api_workers)]
        self._worker = worker

    async def run(self, *, announce: Callable[[], None], watch: Callable[[], None]) -> None:
        """Work until SIGINT, SIGTERM or SIGHUP. `announce` is called once the API answers, `watch` every second."""
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
        """Wait until every API process answers; say no if asked to stop first, raise if one cannot start."""
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
        """One by one: at every moment all but one work, and the socket stays open."""
        for child in (*self._apis, *([self._worker] if self._worker else [])):
            log.info("replacing", child=child.name)
            await child.replace()

    async def _stop(self) -> None:
        # Ours is closed too: once the processes have closed theirs, the kernel refuses instead of keeping callers waiting.
        self._listener.close()
        grace_s = self._settings.drain_delay_s + self._settings.shutdown_grace_s + _MARGIN_S
        await asyncio.gather(*(child.stop(within_s=grace_s) for child in self._apis))
        if self._worker is not None:
            await self._worker.stop(within_s=2 * self._settings.shutdown_grace_s + _MARGIN_S)

    def _api(self, number: int) -> Child:
        descriptor = self._listener.fileno()
        return Child(
            f"api-{number + 1}",
            [*_PROGRAM, "api", "--fd", str(descriptor)],
            environment=child_environment(self._settings, name="api", metrics_dir=self._metrics_dir),
            inherits=(descriptor,),
            announces=True,
            on_end=forgetter(self._metrics_dir),
        )


def worker_child(settings: Settings, *, metrics_dir: Path) -> Child:
    return Child(
        "worker",
        [*_PROGRAM, "worker"],
        environment=child_environment(settings, name="worker", metrics_dir=metrics_dir),
        announces=False,
        on_end=forgetter(metrics_dir),
    )


def child_environment(settings: Settings, *, name: str, metrics_dir: Path) -> dict[str, str]:
    """Tell a child what was chosen or found here: it must not read another `.env` differently."""
    chosen = {
        "redis_url": settings.redis_url,
        "database_url": settings.database_url,
        "var_dir": settings.var_dir,
        "host": settings.host,
        "port": settings.port,
        "webhook_allow_private": settings.webhook_allow_private,
        "process_name": name,
        "prometheus_multiproc_dir": metrics_dir,
    }
    return environment_with(**chosen)


def forgetter(metrics_dir: Path) -> Callable[[int], None]:
    """Return what takes a dead process's gauges out of the metrics; its counters stay."""

    def forget(pid: int) -> None:
        multiprocess.mark_process_dead(pid, str(metrics_dir))

    return forget


async def _repeat(work: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_WATCH_S)
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next time may go well
            complain("watching failed, going on", error)


async def _on_each(event: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await event.wait()
        event.clear()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the next signal is to find somebody
            complain("what a signal asked for failed, waiting for the next", error)
