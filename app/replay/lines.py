"""Reads entries from a file or standard input: one JSON object a line, gzipped or not."""

import gzip
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from app.domain.instants import ms_of

STDIN = "-"
_GZIP_MAGIC = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"  # which some programs begin a file with


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
