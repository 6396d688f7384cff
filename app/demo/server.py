"""Starts `adjourn serve` as a user would: a process with embedded servers in a temporary folder, removed afterwards."""

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

from msgspec import Struct

from app.embedded.child_setup import end_with_parent
from app.errors import CannotStart
from app.settings import environment_with

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
