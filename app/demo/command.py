"""`adjourn demo` on a terminal: start, play, compare, show. The exit code is 0 if everything agrees."""

import asyncio

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from app.clock import monotonic_ms
from app.demo.day import Day, make_day
from app.demo.play import DemoFailed, Played, play
from app.demo.receiver import Receiver
from app.demo.report import compare, show
from app.demo.server import serving
from app.errors import CannotStart
from app.replay.poster import ReplayStopped, api_client

_WIDE = 110


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
