"""`adjourn demo` on a terminal: start, play, compare, show. The exit code is 0 if everything agrees."""

import asyncio
import re
import shutil
import signal
import sys
import tempfile
from asyncio import StreamReader
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.clock import monotonic_ms
from app.demo.day import Day, make_day
from app.demo.play import DemoFailed, Played, Receiver, play
from app.demo.report import compare, show
from app.embedded.account import end_with_parent
from app.errors import CannotStart
from app.replay import ReplayStopped, api_client
from app.settings import environment_with

_WIDE = 110
_START_S = 60.0
_STOP_S = 30.0
_URL = re.compile(r"^ *api +(http://\S+)", re.MULTILINE)
_KEY = re.compile(r"Bearer (adj_[\w-]+)")


class Served(Struct, frozen=True):
    """Its URL, its first admin key, and its output during the start."""

    url: str
    key: str
    output_text: str


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    """A running `adjourn serve` until the end of the block. Raises `CannotStart` with its output."""
    folder = Path(tempfile.mkdtemp(prefix="adj-"))
    try:
        process, output = await _start(folder)
        try:
            output_text = await _until_ready(output)
            draining = asyncio.create_task(_drain(output))
            yield Served(_found(_URL, output_text), _found(_KEY, output_text), output_text)
        finally:
            await _stop(process)
        await draining
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _start(folder: Path) -> tuple[Process, StreamReader]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app.cli", "serve", "--port", "0", "--var-dir", str(folder)),
        env=environment_with(redis_url=None, database_url=None, log_level="WARNING"),
        stdout=PIPE,
        stderr=STDOUT,
        process_group=0,
        preexec_fn=end_with_parent(signal.SIGTERM),
    )
    if process.stdout is None:
        raise CannotStart("`adjourn serve` has no output")
    return process, process.stdout


async def _until_ready(output: StreamReader) -> str:
    output_text = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(_START_S):
            async for line in output:
                output_text += line.decode()
                if line.startswith(b"Ready"):
                    return output_text
    raise CannotStart(f"`adjourn serve` did not start:\n{output_text}")


async def _drain(output: StreamReader) -> None:
    """Read the output: the process would block when the pipe is full."""
    async for _ in output:
        pass


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _found(pattern: re.Pattern[str], output_text: str) -> str:
    found = pattern.search(output_text)
    if found is None:
        raise CannotStart(f"`adjourn serve` did not say what it should:\n{output_text}")
    return found[1]


def run() -> int:
    """Returns 0 if the result agrees with the script."""
    try:
        return asyncio.run(_run(_console()))
    except (DemoFailed, ReplayStopped) as error:
        raise CannotStart(str(error)) from error


def _console() -> Console:
    """A console as wide as the terminal; in a file or a pipe, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


async def _run(console: Console) -> int:
    began_ms = monotonic_ms()
    day = make_day()
    console.print("Starting a Redis, a Postgres, the API and a worker …")
    async with Receiver.listening() as receiver, serving() as served:
        console.print(f"Ready after {_since_s(began_ms):.1f} s: {served.url}, webhooks to {receiver.url}")
        console.print(f"Playing a day: {len(day.items):,} entries and closes of {day.users} users")
        async with api_client(served.url, served.key) as api:
            played = await _play(console, day, receiver, api)
        console.print(f"Played after {_since_s(began_ms):.1f} s\n")
    comparison = compare(day, played, receiver)
    show(console, comparison, played)
    verdict = "Everything agrees with the script." if comparison.agrees else "[bold red]Something disagrees with the script.[/]"
    console.print(f"{verdict} {_since_s(began_ms):.1f} s in all.")
    return 0 if comparison.agrees else 1


async def _play(console: Console, day: Day, receiver: Receiver, api: httpx.AsyncClient) -> Played:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("the day", total=len(day.items))
        return await play(api, day, receiver, on_progress=lambda done: progress.update(task, completed=done))


def _since_s(began_ms: float) -> float:
    return (monotonic_ms() - began_ms) / 1000
