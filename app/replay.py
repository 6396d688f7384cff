"""`adjourn replay`: posts a file of entries through the API, in its order, one batch at a time.

    file ── lines ──> paced batches ── poster ──> tally ──> report, exit code

Owns reading (one JSON object a line, also gzipped), pacing, retrying and counting. Batches are as large as the API accepts, or
follow the pace of `sent_at`. It judges no entry: refusals of the API are counted and reported with their lines.
"""

import asyncio
import gzip
import io
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import IO

import httpx
import msgspec
from msgspec import Struct, structs
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.clock import monotonic_ms
from app.domain.errors import Fault
from app.domain.instants import ms_of
from app.errors import CannotStart

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


PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TIMEOUT_S = 30.0
_BUSY = frozenset({429, 502, 503, 504})
_NDJSON = {"content-type": "application/x-ndjson"}
_SHOWN = 20


class ProblemDetails(Struct, frozen=True):
    """The fields of problem details that a report shows."""

    status: int = 0
    title: str = ""
    detail: str = ""
    errors: tuple[Fault, ...] = ()

    @property
    def text(self) -> str:
        what = self.detail or self.title or f"answered {self.status}"
        faults = "; ".join(f"{fault.where}: {fault.what}" for fault in self.errors if fault.what != what)
        return f"{what} ({faults})" if faults else what


class EntryAnswer(Struct, frozen=True):
    """The API's answer to one entry: its session, or the error."""

    session_id: str | None = None
    session: str = "none"
    duplicate: bool = False
    error: ProblemDetails | None = None


@dataclass(slots=True)
class Tally:
    """The counts so far. `refusals` has the first refused lines, as (line number, reason)."""

    entries: int = 0
    opened: int = 0
    duplicates: int = 0
    refused: int = 0
    retries: int = 0
    elapsed_s: float = 0.0
    refusals: list[tuple[int, str]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Entries a second."""
        return self.entries / self.elapsed_s if self.elapsed_s else 0.0

    def add(self, line: EntryLine, answer: EntryAnswer) -> None:
        """Count one entry. A duplicate has the answer of its first time, so it opened no session now."""
        self.entries += 1
        self.duplicates += answer.duplicate
        self.opened += answer.session == "opened" and not answer.duplicate
        if answer.error is not None:
            self.refused += 1
            if len(self.refusals) < _SHOWN:
                self.refusals.append((line.number, answer.error.text))


class ReplayStopped(Exception):
    """The replay ended early: the remaining lines were not posted. The message says why."""


class _Batch(Struct, frozen=True):
    answers: list[EntryAnswer]


_decode_batch = msgspec.json.Decoder(_Batch).decode


_decode_problem = msgspec.json.Decoder(ProblemDetails).decode


def api_client(url: str, key: str | None) -> httpx.AsyncClient:
    """A client of the API at `url`, without the environment's proxies."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)


class Poster:
    """Posts one bot's entries. `patience_s` limits the tries of one batch; `retries` counts the repeated ones."""

    def __init__(self, client: httpx.AsyncClient, *, bot: str, patience_s: float = PATIENCE_S) -> None:
        self._client = client
        self._path = f"/v1/bots/{bot}/messages/batch"
        self._patience_s = patience_s
        self.retries = 0

    async def post(self, batch: Sequence[EntryLine]) -> list[EntryAnswer]:
        """One answer for each line, in order. Lines without a final answer are posted again with the same ids.

        Raises `ReplayStopped` if the whole batch is refused, or if lines have no final answer within `patience_s`.
        """
        answers: dict[int, EntryAnswer] = {}
        give_up_ms = monotonic_ms() + self._patience_s * 1000
        for attempt in count():
            unanswered = [line for line in batch if line.number not in answers]
            got, pause_s = await self._try(unanswered)
            final = [pair for pair in zip(unanswered, got, strict=bool(got)) if not _is_busy(pair[1])]
            # A duplicate in a later try is the entry of an earlier try, whose answer was lost.
            answers |= {
                line.number: structs.replace(answer, duplicate=answer.duplicate and not attempt) for line, answer in final
            }
            if len(answers) == len(batch):
                break
            pause_s = pause_s or min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            if monotonic_ms() + pause_s * 1000 > give_up_ms:
                raise ReplayStopped(f"line {unanswered[0].number}: no answer for {self._patience_s:g} s; replay the file again")
            self.retries += 1
            await asyncio.sleep(pause_s)
        return [answers[line.number] for line in batch]

    async def _try(self, lines: Sequence[EntryLine]) -> tuple[list[EntryAnswer], float]:
        """The answers, empty if all lines must be posted again, and the `Retry-After` in seconds, 0 without one."""
        try:
            reply = await self._client.post(self._path, content=b"\n".join(line.body for line in lines), headers=_NDJSON)
        except httpx.TransportError:
            return [], 0.0
        if reply.status_code in _BUSY:
            return [], _retry_after_s(reply)
        if reply.status_code != httpx.codes.OK:
            raise ReplayStopped(f"line {lines[0].number}: {_problem(reply).text}")
        return _decode_batch(reply.content).answers, 0.0


async def replay(
    lines: Iterable[EntryLine],
    *,
    poster: Poster,
    speed: float = 0.0,
    most: int = BATCH_ENTRIES,
    on_batch: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Post all lines, at `speed` times real time or (0) at once; calls `on_batch` after each batch. Raises `ReplayStopped`."""
    tally = Tally()
    began_ms = monotonic_ms()
    async for batch in batches_of(lines, most=most, pace=Pace(speed)):
        for line, answer in zip(batch, await poster.post(batch), strict=True):
            tally.add(line, answer)
        tally.elapsed_s = (monotonic_ms() - began_ms) / 1000
        tally.retries = poster.retries
        on_batch(tally)
    return tally


def _is_busy(answer: EntryAnswer) -> bool:
    return answer.error is not None and answer.error.status in _BUSY


def _retry_after_s(reply: httpx.Response) -> float:
    value = reply.headers.get("retry-after", "")
    return min(float(value), _LONGEST_PAUSE_S) if value.isdigit() else 0.0


def _problem(reply: httpx.Response) -> ProblemDetails:
    try:
        problem = _decode_problem(reply.content)
    except msgspec.DecodeError:
        problem = ProblemDetails()
    return problem if problem.text != "answered 0" else ProblemDetails(reply.status_code)


def run(path: str, *, bot: str, url: str, key: str | None, speed: float, most: int) -> int:
    """Replay the file and report; returns the exit code: 0 if every entry was accepted."""
    console = Console()
    try:
        with open_source(path) as source:
            tally = asyncio.run(_replay(source, console, bot=bot, url=url, key=key, speed=speed, most=most))
    except OSError as error:
        raise CannotStart(f"cannot read {path}: {error.strerror or error}") from error
    except ReplayStopped as error:
        raise CannotStart(str(error)) from error
    report(tally, console)
    return 1 if tally.refused else 0


async def _replay(source: Source, console: Console, *, bot: str, url: str, key: str | None, speed: float, most: int) -> Tally:
    with progress_bar(console) as progress:
        task = progress.add_task(source.name, total=source.size, counts="")

        def show(tally: Tally) -> None:
            counts = f"{tally.entries:,} entries  {tally.opened:,} sessions  {tally.rate:,.0f}/s"
            progress.update(task, completed=source.position(), counts=counts)

        async with api_client(url, key) as client:
            return await replay(source.lines(), poster=Poster(client, bot=bot), speed=speed, most=most, on_batch=show)


def progress_bar(console: Console) -> Progress:
    """A progress bar on a terminal, nothing if the output goes to a file."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def report(tally: Tally, console: Console) -> None:
    """Print the counts and the first refused lines."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in _rows(tally).items():
        table.add_row(name, value)
    console.print(table)
    for line, reason in tally.refusals:
        console.print(f"line {line}: {reason}", markup=False, highlight=False)
    if tally.refused > len(tally.refusals):
        console.print(f"… and {tally.refused - len(tally.refusals):,} more")


def _rows(tally: Tally) -> dict[str, str]:
    rows = {
        "entries": f"{tally.entries:,}",
        "sessions opened": f"{tally.opened:,}",
        "duplicates": f"{tally.duplicates:,}",
        "refused": f"{tally.refused:,}",
        "seconds": f"{tally.elapsed_s:,.1f}",
        "entries/s": f"{tally.rate:,.0f}",
    }
    return rows | ({"retries": f"{tally.retries:,}"} if tally.retries else {})
