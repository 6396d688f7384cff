"""Memory and start: Redis for an open session, the processes of `adjourn serve` at idle, its time to ready."""

import asyncio
import subprocess
import sys
import tempfile
from time import perf_counter

import psutil
from msgspec import Struct

from app.domain.entry import Entry, Role
from app.domain.records import Receive
from app.domain.strand import Strand
from app.resources import Resources
from app.settings import environment_with
from bench import FAST
from bench.installation import BOT

SESSIONS = 5_000
TEXT = "x" * 100
STARTS = 1 if FAST else 3


class BytesEach(Struct, frozen=True):
    """Bytes of Redis for an open session, by the entries it has, and the bytes of their texts."""

    of_two_entries: float
    of_eight_messages: float
    payload: int = 8 * len(TEXT)


class Started(Struct, frozen=True):
    """Seconds until `serve` is ready, and MB of memory (proportional set size) of its processes without the servers."""

    seconds: float
    megabytes: float


async def measure_sessions(resources: Resources) -> BytesEach:
    """Open sessions of two entries without a text, and others of eight messages of 100 characters."""
    return BytesEach(
        await _bytes_each(resources, "two", entries=2, text=None), await _bytes_each(resources, "eight", entries=8, text=TEXT)
    )


def measure_starts() -> list[Started]:
    """A first start makes the folder; those that follow are measured."""
    with tempfile.TemporaryDirectory(prefix="adj-") as folder:
        return [_start(folder) for _ in range(STARTS + 1)][1:]


def show_sessions(each: BytesEach) -> None:
    print(f"\nMemory of Redis: {SESSIONS:,} open sessions")
    print(f"  {each.of_two_entries:,.0f} bytes a session of two entries without a text")
    of_text = f"{each.payload} bytes of text"
    print(f"  {each.of_eight_messages:,.0f} bytes a session of eight messages of {len(TEXT)} characters ({of_text})")


def show_starts(starts: list[Started]) -> None:
    seconds, megabytes = sorted(one.seconds for one in starts), sorted(one.megabytes for one in starts)
    print(f"\nadjourn serve on an existing folder, {len(starts)} starts")
    print(f"  ready after {seconds[len(seconds) // 2]:.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f})")
    print(f"  {megabytes[len(megabytes) // 2]:.0f} MB of all processes but the servers")


async def _bytes_each(resources: Resources, name: str, *, entries: int, text: str | None) -> float:
    before = await _used(resources)
    for number in range(entries):
        role: Role = "bot" if number % 2 else "user"
        await asyncio.gather(
            *[
                resources.ledger.submit(
                    Strand(BOT, f"web:{name}-{user}"),
                    Receive(Entry(user_id=f"{name}-{user}", role=role, text=text), f"{name}-{user}-{number}"),
                )
                for user in range(SESSIONS)
            ]
        )
    return (await _used(resources) - before) / SESSIONS


async def _used(resources: Resources) -> int:
    return int((await resources.redis.info("memory"))["used_memory_dataset"])


def _start(folder: str) -> Started:
    began = perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--var-dir", folder],
        env=environment_with(redis_url=None, database_url=None),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Ready."):
                break
        seconds = perf_counter() - began
        parent = psutil.Process(process.pid)
        own = [parent, *(each for each in parent.children() if each.name().startswith("adjourn "))]
        return Started(seconds, sum(each.memory_full_info().pss for each in own) / 1e6)
    finally:
        process.terminate()
        process.communicate(timeout=60)
