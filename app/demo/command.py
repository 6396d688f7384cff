"""`adjourn demo` on a terminal: starts everything, plays the day, and prints its result beside the script, as tables.

The exit code is 0 if everything agrees. With `--stay` the installation is left running under lively traffic until Ctrl-C.
"""

import asyncio
import re
import shutil
import signal
import sys
import tempfile
from asyncio import StreamReader
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from app.clock import monotonic_ms
from app.demo.day import Day, make_day
from app.demo.play import DemoFailed, JsonDict, Played, Receiver, play
from app.demo.stay import BOTS, stay_busy
from app.embedded.account import end_with_parent
from app.errors import CannotStart
from app.replay import ReplayStopped, api_client
from app.settings import environment_with

_TIMES = slice(11, 19)


class CountRow(Struct, frozen=True):
    """One scripted count, and the counts that were seen."""

    name: str
    expected: int
    seen: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        return all(count == self.expected for count in self.seen)


class Comparison(Struct, frozen=True):
    """Everything that is compared; `texts` is the first closure message of each language."""

    reasons: list[CountRow]
    closure_messages: list[CountRow]
    totals: list[CountRow]
    texts: dict[str, str]

    @property
    def agrees(self) -> bool:
        return all(row.agrees for row in (*self.reasons, *self.closure_messages, *self.totals))


def compare(day: Day, played: Played, receiver: Receiver) -> Comparison:
    """The script against the API's answers, the archive and the webhooks."""
    expected = day.expected
    archived = Counter(str(session["reason"]) for session in played.sessions)
    notified = Counter(str(item.data["session"]["reason"]) for item in receiver.of("session.closed"))
    received = receiver.of("session.closure_message")
    closure_messages = Counter(str(item.data["language"]) for item in received)
    sessions = expected.reasons.total()
    reasons = [
        CountRow(reason, expected.reasons[reason], (archived[reason], notified[reason]))
        for reason in sorted(expected.reasons | archived | notified, key=lambda reason: (-expected.reasons[reason], reason))
    ]
    return Comparison(
        reasons,
        [
            CountRow(language, expected.closure_messages[language], (closure_messages[language],))
            for language in sorted(expected.closure_messages | closure_messages)
        ],
        [
            CountRow("entries taken", expected.entries, (played.taken,)),
            CountRow("entries of sessions", expected.entries - expected.late, (_sum(played, "entries"),)),
            CountRow("late entries", expected.late, (_sum(played, "late_entries"),)),
            CountRow("sessions opened", sessions, (played.opened,)),
            CountRow("different sessions archived", sessions, (len({session["id"] for session in played.sessions}),)),
            CountRow("sessions with a user", expected.interactive, (_sum(played, "interactive"),)),
            CountRow("webhooks with a wrong signature", 0, (receiver.forged,)),
            CountRow("closure messages after the end", 0, (receiver.late_closure_messages(),)),
        ],
        {str(item.data["language"]): str(item.data["text"]) for item in reversed(received)},
    )


def _sum(played: Played, field: str) -> int:
    return sum(session[field] for session in played.sessions)


def show(console: Console, comparison: Comparison, played: Played) -> None:
    """Print all of it."""
    total = CountRow("all", sum(row.expected for row in comparison.reasons), _sums(comparison.reasons))
    console.print(
        _table("Sessions by close reason", ("scripted", "GET /v1/sessions", "webhooks"), [*comparison.reasons, total]),
        _table("Closure messages by language", ("scripted", "received and verified"), comparison.closure_messages),
        *(f"  {language}  {comparison.texts[language]}" for language in sorted(comparison.texts)),
        "",
        _table("And also", ("scripted", "seen"), comparison.totals),
        _page(played.page),
        sep="\n",
    )


def _sums(rows: list[CountRow]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(row.seen for row in rows), strict=True)))


def _table(title: str, columns: tuple[str, ...], rows: list[CountRow]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        style = None if row.agrees else "bold red"
        table.add_row(row.name, f"{row.expected:,}", *(f"{count:,}" for count in row.seen), style=style)
    return table


def _page(sessions: list[JsonDict]) -> Group:
    """A page of `GET /v1/sessions`, in short."""
    columns = ("opened", "closed", "user", "channel", "reason", "rule", "outcome", "entries")
    table = Table(title=f"GET /v1/sessions?bot=demo&limit={len(sessions)}", title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column == "entries" else "left")
    for session in sessions:
        times = (session["opened_at"][_TIMES], session["closed_at"][_TIMES])
        names = ("user_id", "channel", "reason", "closing_rule", "outcome", "entries")
        table.add_row(*times, *(str(session[name]) for name in names))
    return Group(table)


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


def run(*, stay: bool) -> int:
    """Returns 0 if the result agrees with the script. With `stay` traffic goes on until SIGINT or SIGTERM."""
    try:
        return asyncio.run(_run(_console(), stay=stay))
    except (DemoFailed, ReplayStopped) as error:
        raise CannotStart(str(error)) from error


def _console() -> Console:
    """A console as wide as the terminal; in a file or a pipe, wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDE)


async def _run(console: Console, *, stay: bool) -> int:
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
            console.print(f"{_verdict(comparison)} {_since_s(began_ms):.1f} s in all.")
            if stay:
                await _stay(console, served, api)
    return 0 if comparison.agrees else 1


def _verdict(comparison: Comparison) -> str:
    return "Everything agrees with the script." if comparison.agrees else "[bold red]Something disagrees with the script.[/]"


async def _stay(console: Console, served: Served, api: httpx.AsyncClient) -> None:
    """Print the address and the key, and let users come until SIGINT or SIGTERM."""
    traffic = asyncio.create_task(stay_busy(api, report=lambda text: console.print(text, style="red", markup=False)))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, traffic.cancel)
    look = f"\nUsers of the bots {', '.join(BOTS)} come and go until Ctrl-C. Sign in with the key:\n"
    # A terminal must fold neither the address nor the key.
    console.print(look, f"  {served.url}/console/", f"  {served.key}", "", sep="\n", soft_wrap=True, highlight=False)
    with suppress(asyncio.CancelledError):
        await traffic


async def _play(console: Console, day: Day, receiver: Receiver, api: httpx.AsyncClient) -> Played:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("the day", total=len(day.items))
        return await play(api, day, receiver, on_progress=lambda done: progress.update(task, completed=done))


def _since_s(began_ms: float) -> float:
    return (monotonic_ms() - began_ms) / 1000
