"""Reads entries from a file or standard input, one JSON object a line, and batches them as they are due.

A file may be gzipped. Batches are as large as the API accepts, or follow the pace of `sent_at`.
"""

import asyncio
import gzip
import io
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from app.clock import monotonic_ms
from app.domain.instants import ms_of

STDIN = "-"
_GZIP_MAGIC = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # which some programs begin a file with
BATCH_ENTRIES = 500
BATCH_BYTES = 1_000_000
_SOON_S = 0.005  # a line that is due within this time is due now: so short a sleep costs more than it waits


class EntryLine(Struct, frozen=True):
    """One entry, with a `message_id` if it had none. `number` counts the file's lines from 1."""

    number: int
    body: bytes
    sent_at_ms: int | None = None


class Source(Struct, frozen=True):
    """An open file of entries. The position of `raw` in `size` (None: unknown) is the progress."""

    name: str
    stream: IO[bytes]
    raw: IO[bytes]
    size: int | None

    def lines(self) -> Iterator[EntryLine]:
        return lines_of(self.stream, name=self.name)

    def position(self) -> int:
        return self.raw.seek(0, os.SEEK_CUR) if self.size is not None else 0


class _EntryHead(Struct, frozen=True):
    """The fields of an entry that a replay reads before posting it."""

    message_id: str | None = None
    sent_at: datetime | None = None


_decode = msgspec.json.Decoder(_EntryHead).decode


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Open a file, or standard input for `-`; its first bytes show whether it is gzipped. Raises `OSError`."""
    with ExitStack() as stack:
        if path == STDIN:
            raw: IO[bytes] = sys.stdin.buffer
            size = None
        else:
            raw = stack.enter_context(Path(path).open("rb"))
            size = Path(path).stat().st_size
        stream: IO[bytes] = io.BufferedReader(raw)  # type: ignore[type-var]  # typeshed wants a raw stream; any will do
        if stream.peek(2)[:2] == _GZIP_MAGIC:  # type: ignore[attr-defined]  # it is the reader made above
            stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]  # a GzipFile reads as any file does
        yield Source("stdin" if path == STDIN else Path(path).name, stream, raw, size)


def lines_of(stream: Iterable[bytes], *, name: str) -> Iterator[EntryLine]:
    """The lines that are not blank. One without `message_id` gets `name:number`, the same at every replay of the file."""
    for number, raw in enumerate(stream, start=1):
        body = raw.removeprefix(_MARK).strip()
        if body:
            yield _line(number, body, name=name)


def _line(number: int, body: bytes, *, name: str) -> EntryLine:
    try:
        seen = _decode(body)
        if seen.message_id is None:
            entry = msgspec.json.decode(body, type=dict[str, object])
            body = msgspec.json.encode(entry | {"message_id": f"{name[-200:]}:{number}"})
    except (msgspec.DecodeError, UnicodeDecodeError):
        return EntryLine(number, body)  # the API's refusal says what is wrong with it
    sent_at = seen.sent_at
    return EntryLine(number, body, ms_of(sent_at) if sent_at is not None and sent_at.tzinfo is not None else None)


class Pace:
    """When a line is due: at `speed` times real time by `sent_at`, counted from the first; at once where `speed` is 0."""

    def __init__(self, speed: float, *, now_ms: Callable[[], float] = monotonic_ms) -> None:
        self._speed = speed
        self._now_ms = now_ms
        self._start: tuple[int, float] | None = None

    def wait_s(self, line: EntryLine) -> float:
        """How long until the line is due."""
        if not self._speed or line.sent_at_ms is None:
            return 0.0
        if self._start is None:
            self._start = line.sent_at_ms, self._now_ms()
        first_ms, began_ms = self._start
        due_ms = began_ms + (line.sent_at_ms - first_ms) / self._speed
        wait_s = (due_ms - self._now_ms()) / 1000
        return wait_s if wait_s > _SOON_S else 0.0


async def batches_of(lines: Iterable[EntryLine], *, most: int, pace: Pace) -> AsyncIterator[list[EntryLine]]:
    """Batches of up to `most` lines and 1 MB, each handed out before the first line that is not due yet."""
    batch: list[EntryLine] = []
    size = 0
    for line in lines:
        length = len(line.body) + 1
        if batch and (len(batch) == most or size + length > BATCH_BYTES or pace.wait_s(line)):
            yield batch
            batch, size = [], 0
        if wait_s := pace.wait_s(line):
            await asyncio.sleep(wait_s)
        batch.append(line)
        size += length
    if batch:
        yield batch
