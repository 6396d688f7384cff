"""`adjourn replay` on a terminal: a progress bar, a report, an exit code."""

import asyncio

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.errors import CannotStart
from app.replay.lines import Source, open_source
from app.replay.poster import Poster, ReplayStopped, Tally, api_client, replay


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
