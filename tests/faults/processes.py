"""The product's processes in the harness: started fast, killed, paused, resumed, each known by its pid."""

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from app.settings import environment_with
from tests.faults.zygote import Order

Part = Literal["api", "worker"]
STOP_S = 30.0


class Process:
    """One process. `status` is its exit status, negative for a signal; None while it runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.ready = asyncio.Event()  # of an API process: it answers requests
        self.over = asyncio.Event()

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def pause(self) -> None:
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    async def stop(self) -> None:
        """End it with SIGTERM, as a deployment does."""
        self._send(signal.SIGTERM)
        self._send(signal.SIGCONT)
        async with asyncio.timeout(STOP_S):
            await self.over.wait()

    async def until_paused(self, *, within_s: float = 30) -> None:
        """Wait until a failpoint has stopped it."""
        async with asyncio.timeout(within_s):
            while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
                await asyncio.sleep(0.01)

    def rss(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def _send(self, number: signal.Signals) -> None:
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Processes:
    """Starts processes by a zygote; all of them end with it."""

    def __init__(self, zygote: asyncio.subprocess.Process, *, descriptor: int, settings: Mapping[str, str], logs: Path) -> None:
        self._zygote = zygote
        self._descriptor = descriptor
        self._settings = dict(settings)
        self._logs = logs
        self._forked: deque[asyncio.Future[Process]] = deque()
        self._living: dict[int, Process] = {}
        self._listening = asyncio.create_task(self._listen(), name="zygote")

    async def fork(
        self,
        part: Part,
        *,
        armed: str = "",
        skew: tuple[tuple[float, float], ...] = (),
        descriptor: int | None = None,
        **settings: object,
    ) -> Process:
        """Start one without waiting. `armed` as in `app.failpoints`; `settings` and `descriptor` override those of all."""
        given = self._settings | {name.upper(): str(value) for name, value in settings.items()}
        order = Order(part, given, str(self._logs / f"{part}.log"), descriptor or self._descriptor, armed, skew)
        forked: asyncio.Future[Process] = asyncio.get_running_loop().create_future()
        self._forked.append(forked)
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(msgspec.json.encode(order) + b"\n")
        return await forked

    @property
    def living(self) -> list[Process]:
        return list(self._living.values())

    async def stop_all(self) -> None:
        await asyncio.gather(*(process.stop() for process in self.living))

    async def close(self) -> None:
        """End the zygote, and with it all processes."""
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        await self._zygote.wait()
        await self._listening

    async def _listen(self) -> None:
        assert self._zygote.stdout is not None
        while line := await self._zygote.stdout.readline():
            report = msgspec.json.decode(line, type=dict[str, int])
            if "forked" in report:
                process = self._living[report["forked"]] = Process(report["forked"])
                self._forked.popleft().set_result(process)
            elif "ready" in report:
                self._living[report["ready"]].ready.set()
            else:
                process = self._living.pop(report["ended"])
                process.status = report["status"]
                process.over.set()


@asynccontextmanager
async def processes(
    *, descriptor: int, apart: tuple[int, ...] = (), settings: Mapping[str, str], logs: Path
) -> AsyncIterator[Processes]:
    """Processes with these settings; the API listens on the socket `descriptor`, or on one of `apart`."""
    zygote = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.faults.zygote"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=(descriptor, *apart),
        env=environment_with(adjourn_failpoint="any"),
    )
    running = Processes(zygote, descriptor=descriptor, settings=settings, logs=logs)
    try:
        yield running
    finally:
        await running.close()
