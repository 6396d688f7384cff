"""`adjourn stats`: rebuilds and verifies the roll-up of closed sessions, day by day, with a progress bar.

Both may run while everything else does, and be cut and run again. A rebuild notes the hours of a day and rolls them up like a
worker; answers stay exact meanwhile. It refuses nothing; a roll-up that is wrong is reported, and not repaired, by `verify`.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import rollup
from app.archive.engine import make_single_use_engine
from app.replay import progress_bar

DAY = timedelta(days=1)
T = TypeVar("T")


async def rebuild(database_url: str, console: Console) -> int:
    """Roll up every hour again; returns how many there were."""
    return sum(await _each_day(database_url, console, "rebuilding", rebuild_day))


async def verify(database_url: str, console: Console) -> list[rollup.Hour]:
    """The hours whose roll-up differs from what their sessions give."""
    found = await _each_day(database_url, console, "verifying", verify_day)
    return [hour for hours in found for hour in hours]


async def rebuild_day(engine: AsyncEngine, day: datetime) -> int:
    """Roll up the hours of a day again, and what else is stale; returns how many."""
    async with engine.begin() as conn:
        await rollup.note_all(conn, day, day + DAY)
    return await rollup.RollUp(engine).run_once()


async def verify_day(engine: AsyncEngine, day: datetime) -> list[rollup.Hour]:
    """The wrong hours of a day."""
    async with engine.connect() as conn:
        return await rollup.wrong_hours(conn, day, day + DAY)


async def _each_day(
    database_url: str, console: Console, words: str, work: Callable[[AsyncEngine, datetime], Awaitable[T]]
) -> list[T]:
    engine = make_single_use_engine(database_url, name="adjourn-stats")
    try:
        async with engine.connect() as conn:
            days = await rollup.days(conn)
        with progress_bar(console) as bar:
            task = bar.add_task(words, total=len(days), counts="")
            found = []
            for day in days:
                found.append(await work(engine, day))
                bar.advance(task)
        return found
    finally:
        await engine.dispose()
