"""A supervised process: started, restarted when it ends, replaced, stopped.

It ends with the supervisor, also if that is killed (`app.embedded.account`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from app.embedded.account import end_with_parent
from app.supervisor.fork import ForkedProcess, can_fork, fork

Process = asyncio.subprocess.Process | ForkedProcess

_LONGEST_PAUSE_S = 5.0
_FIRST_PAUSE_S = 0.1
_STARTUP_S = 30.0
_STEADY_S = 10.0
log = structlog.get_logger(__name__)


class Child:
    """One process of the supervisor; a restart or a replacement is another process of the same `Child`.

    `arguments` are those of a new interpreter: `-m`, a module and its words. With `main`, which that module runs, the process is
    forked instead, until the first `replace`: from then on the code on disk may be newer. `announces` means that the program
    takes `--ready-fd N` and writes to it once it is ready; otherwise a started process counts as ready. `on_end` is called with
    the pid of each process that has ended.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        inherits: tuple[int, ...] = (),
        announces: bool,
        on_end: Callable[[int], None],
        main: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self.failed_to_start = asyncio.Event()
        self._arguments = arguments
        self._environment = environment
        self._inherits = inherits
        self._announces = announces
        self._on_end = on_end
        self._main = main
        self._process: Process | None = None
        self._stopping = asyncio.Event()

    async def keep(self) -> None:
        """Run it, and run it again when it ends or cannot be started, until `stop`.

        A lack of memory, processes, descriptors or disk space may be temporary, and only the supervisor can try again.
        """
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began_s = asyncio.get_running_loop().time()
            try:
                await self._run_once()
            except Exception as error:  # noqa: BLE001 - any error may be temporary
                log_error("process cannot be started or watched, trying again", error, child=self.name)
            if self.failed_to_start.is_set():
                return
            # A process that ends soon is restarted with a growing pause: its Redis may be down.
            steady = asyncio.get_running_loop().time() - began_s > _STEADY_S
            pause_s = _FIRST_PAUSE_S if steady else min(pause_s * 2, _LONGEST_PAUSE_S)
            await self._pause(pause_s)

    async def replace(self) -> None:
        """Start a second process and end the first once the second is ready; if it does not become ready, keep the first."""
        first, self._main = self._process, None
        started = await self._spawn_with_retries()
        if started is None:
            return
        second, notice = started
        is_ready = await self._is_ready(second, notice)
        if not is_ready or self._process is not first or self._stopping.is_set():
            if not is_ready:
                log.error("new process is not ready, the old one stays", child=self.name, pid=second.pid)
            await _end(second, within_s=_STARTUP_S)
            self._on_end(second.pid)
            return
        self._process = second
        if first is not None and first.returncode is None:
            await _end(first, within_s=_STARTUP_S)

    async def stop(self, *, within_s: float) -> None:
        """Terminate it, and kill it if it does not end in time."""
        self._stopping.set()
        if self._process is not None:
            await _end(self._process, within_s=within_s)

    async def _run_once(self) -> None:
        if self._process is not None:
            await _end(self._process, within_s=_STARTUP_S)  # ended already, unless watching it went wrong
        self._process, notice = await self._spawn()
        if await self._is_ready(self._process, notice):
            self.ready.set()
        # `replace` may set another process meanwhile; then that one's end counts.
        while True:
            current = self._process
            await current.wait()
            self._on_end(current.pid)
            if current is self._process:
                break
        if self._stopping.is_set():
            return
        if not self.ready.is_set():
            self.failed_to_start.set()
            return
        log.warning("process ended, starting it again", child=self.name, pid=current.pid, exit=current.returncode)

    async def _spawn_with_retries(self) -> tuple[Process, int] | None:
        """Start a process, and retry until it can be started; None if stopped first."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            try:
                return await self._spawn()
            except OSError as error:
                log_error("process cannot be started, trying again", error, child=self.name)
            await self._pause(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        return None

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _spawn(self) -> tuple[Process, int]:
        """Start a process. Returns it and the descriptor on which it announces that it is ready."""
        notice, announcement = os.pipe()
        os.set_blocking(notice, False)
        words, keeps = (("--ready-fd", str(announcement)), (announcement,)) if self._announces else ((), ())
        try:
            return await self._start([*self._arguments, *words], keeps=(*self._inherits, *keeps)), notice
        except BaseException:
            os.close(notice)
            raise
        finally:
            os.close(announcement)

    async def _start(self, arguments: Sequence[str], *, keeps: tuple[int, ...]) -> Process:
        if self._main is not None and can_fork():
            return fork(self._main, arguments[1:], environment=self._environment, keeps=keeps)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            env=self._environment,
            pass_fds=keeps,
            # Its own group: Ctrl-C reaches the supervisor alone, which stops its children in order.
            process_group=0,
            preexec_fn=end_with_parent(signal.SIGTERM),
        )

    async def _is_ready(self, process: Process, notice: int) -> bool:
        """Whether it announces that it is ready, before it ends (which closes the pipe) or takes too long."""
        try:
            if not self._announces:
                return process.returncode is None
            async with asyncio.timeout(_STARTUP_S):
                is_ready = await _read_byte(notice) == b"1"
        except TimeoutError:
            return False
        finally:
            os.close(notice)
        if is_ready and self.ready.is_set():  # the first start is reported by the supervisor
            log.info("process is ready again", child=self.name, pid=process.pid)
        return is_ready


def log_error(event: str, error: Exception, **fields: object) -> None:
    """Log an exception with its traceback; a log that cannot be written, on a full disk for example, must not end the loop."""
    with suppress(OSError):
        log.error(event, exc_info=error, **fields)


async def _read_byte(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
        return os.read(descriptor, 1)
    finally:
        loop.remove_reader(descriptor)


async def _end(process: Process, *, within_s: float) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
        # A stopped process (SIGSTOP) handles no signal until it continues.
        process.send_signal(signal.SIGCONT)
    try:
        async with asyncio.timeout(within_s):
            await process.wait()
    except TimeoutError:
        log.warning("process does not end, killing it", pid=process.pid)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
