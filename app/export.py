"""`adjourn export`: an export of the API as a file, with a progress bar, taken up again after the last whole row if it is cut.

Only whole rows are written, so a file is a valid beginning of the export at any instant. A connection that is cut is taken up by
itself; a run that was killed, with `resume`. A Parquet file has its index at its end: cut, it is begun anew. It refuses a file
that exists, unless it is to be resumed, and to resume a Parquet file.
"""

import asyncio
import csv
import io
from collections.abc import Callable, Iterator
from os import SEEK_CUR
from pathlib import Path
from typing import BinaryIO

import httpx
from msgspec import DecodeError, Struct, json
from rich.console import Console

from app.errors import CannotStart
from app.queries.exports import COLUMNS, ExportKind, Format
from app.replay import api_client, progress_bar

_TRIES = 10
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_PIECE = 1 << 20
_BUSY = frozenset({429, 502, 503, 504})
_SEQUENCE = COLUMNS["messages"].index("sequence")


class Export(Struct, frozen=True):
    """An export; `filters` are parameters of the route."""

    kind: ExportKind
    form: Format
    filters: dict[str, str]

    @property
    def path(self) -> str:
        return f"/v1/exports/{self.kind}"

    @property
    def has_lines(self) -> bool:
        """Whether a row is a line, by which a cut file goes on."""
        return self.form != "parquet"

    def place_of(self, row: bytes) -> str:
        """The place of a row, as `after` takes it."""
        if self.form == "csv":
            values = next(csv.reader(io.StringIO(row.decode(), newline="")))
            return values[0] if self.kind == "sessions" else f"{values[0]}:{values[_SEQUENCE]}"
        record = json.decode(row)
        return str(record["id"]) if self.kind == "sessions" else f"{record['session_id']}:{record['sequence']}"


class Rows:
    """Cuts bytes into whole rows: a line feed within quotes of CSV ends none. Bytes of Parquet stay as they are."""

    def __init__(self, export: Export) -> None:
        self._has_lines = export.has_lines
        self._quoted = export.form == "csv"
        self._left = b""

    def whole(self, piece: bytes) -> Iterator[bytes]:
        """The rows that `piece` completes, with their line feeds."""
        if not self._has_lines:
            yield piece
            return
        row = b""
        for line in (self._left + piece).splitlines(keepends=True):
            row += line
            if line.endswith(b"\n") and not (self._quoted and row.count(b'"') % 2):
                yield row
                row = b""
        self._left = row


class Target:
    """The file: whole rows alone, and the place of the last one."""

    def __init__(self, file: BinaryIO, export: Export) -> None:
        self._file = file
        self._export = export
        self._lines = 0
        self._last = b""

    @property
    def size(self) -> str:
        """How much it has, for people."""
        return f"{self.rows} rows" if self._export.has_lines else f"{self._file.seek(0, SEEK_CUR):,} bytes"

    @property
    def rows(self) -> int:
        """How many rows it has, without the head of CSV."""
        return max(0, self._lines - (self._export.form == "csv"))

    def resume(self) -> None:
        """Read what is there, and cut off a row that is not whole."""
        rows, size = Rows(self._export), 0
        while piece := self._file.read(_PIECE):
            for row in rows.whole(piece):
                size += len(row)
                self._count(row)
        self._cut(size)

    def begin(self) -> str | None:
        """The place to go on from; without a row it is written anew, the head too."""
        if self.rows and self._export.has_lines:
            return self._export.place_of(self._last)
        self._lines = 0
        self._cut(0)
        return None

    def write(self, row: bytes) -> None:
        self._file.write(row)
        self._count(row)

    def _cut(self, size: int) -> None:
        self._file.truncate(size)
        self._file.seek(size)

    def _count(self, row: bytes) -> None:
        self._lines += 1
        self._last = row


def run(export: Export, output: Path, *, url: str, key: str | None, resume: bool) -> None:
    """Write the file. Raises `CannotStart` with the reason if that fails; what was written stays, to be resumed."""
    if resume and not export.has_lines:
        raise CannotStart("a Parquet file has its index at its end and cannot be resumed: export it anew, or as csv or ndjson")
    console = Console(stderr=True)
    try:
        with output.open("r+b" if resume else "xb") as file, progress_bar(console) as progress:
            target = Target(file, export)
            if resume:
                target.resume()
            task = progress.add_task(export.kind, total=None, counts="")
            asyncio.run(_download(export, target, url=url, key=key, show=lambda: progress.update(task, counts=target.size)))
            size = target.size
    except FileExistsError:
        raise CannotStart(f"{output} exists: take another name, or --resume it") from None
    except FileNotFoundError as error:
        raise CannotStart(f"cannot open {error.filename}: {error.strerror}") from None
    except (DecodeError, LookupError, UnicodeDecodeError) as error:
        raise CannotStart(f"{output} is no export of {export.kind} as {export.form}") from error
    print(f"{export.kind} in {output}: {size}")


async def _download(export: Export, target: Target, *, url: str, key: str | None, show: Callable[[], None]) -> None:
    """Take up a cut export until it is whole. A try that brings rows begins the count of tries anew."""
    tries, pause_s = 0, _FIRST_PAUSE_S
    async with api_client(url, key) as client:
        while True:
            before = target.rows
            try:
                return await _try(client, export, target, show)
            except httpx.TransportError as error:
                tries = 1 if target.rows > before and export.has_lines else tries + 1
                if tries >= _TRIES:
                    further = "--resume goes on" if export.has_lines else "what was written is no Parquet file"
                    raise CannotStart(f"the export was cut: {type(error).__name__}; {further}") from error
            pause_s = _FIRST_PAUSE_S if tries == 1 else min(pause_s * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)


async def _try(client: httpx.AsyncClient, export: Export, target: Target, show: Callable[[], None]) -> None:
    after = target.begin()
    asked = {**export.filters, "format": export.form, **({"after": after} if after else {})}
    async with client.stream("GET", export.path, params=asked) as reply:
        if reply.status_code in _BUSY:
            raise httpx.RemoteProtocolError(f"answered {reply.status_code}")
        if not reply.is_success:
            await reply.aread()
            raise CannotStart(f"the API refused: {_detail(reply)}")
        rows = Rows(export)
        async for piece in reply.aiter_bytes():
            for row in rows.whole(piece):
                target.write(row)
            show()


def _detail(reply: httpx.Response) -> str:
    try:
        problem = json.decode(reply.content)
        faults = "; ".join(f"{fault['where']}: {fault['what']}" for fault in problem.get("errors", ()))
        return f"{problem['detail']}{': ' if faults else ''}{faults}"
    except (DecodeError, LookupError, TypeError, AttributeError):
        return f"answered {reply.status_code}"
