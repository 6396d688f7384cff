"""Makes the partitions of `sessions` and `messages`, when a row needs one.

A month each for last year, this year and the next; other years, which only sandbox bots' clocks come to, are a partition each:
a query that cannot leave any out locks all of them, so there must never be many.

A partition is made beside its table and then attached, which locks neither readers nor writers out (`PARTITION OF` would).
Archivists that race for a new one wait for one another on an advisory lock.
"""

import re
from collections.abc import Iterable
from datetime import MAXYEAR, UTC, datetime

from msgspec import Struct
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.engine import Lock, take_lock
from app.archive.tables import instant

PARTITIONED = ("sessions", "messages")
DECEMBER = 12

Month = tuple[int, int]


def month_of(opened_at_ms: int) -> Month:
    """Year and month, in UTC."""
    at = instant(opened_at_ms)
    return at.year, at.month


def is_partition(table: str) -> bool:
    return re.fullmatch(r"(sessions|messages)_\d{4,5}(_\d{2})?", table) is not None


def partition(table: str, year: int, number: int | None = None) -> str:
    """The partition of a month or, without its number, of a whole year."""
    return f"{table}_{year:04}" if number is None else f"{table}_{year:04}_{number:02}"


class Partition(Struct, frozen=True):
    """A partition of one of the tables; rows whose `opened_at` is from `start` on and before `end`."""

    table: str
    name: str
    start: datetime
    end: datetime


async def listed(conn: AsyncConnection) -> list[Partition]:
    """All partitions by name, messages first."""
    names = await conn.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY relname"))
    return [_partition_of(name) for name in names if is_partition(name)]


def _partition_of(name: str) -> Partition:
    table, *numbers = name.split("_")
    first, beyond = _bounds(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else None)
    return Partition(table, name, *(_instant(month) for month in (first, beyond)))


def _instant(month: Month) -> datetime:
    return datetime(*month, 1, tzinfo=UTC) if month[0] <= MAXYEAR else datetime.max.replace(tzinfo=UTC)


async def ensure_months(conn: AsyncConnection, months: Iterable[Month]) -> dict[Month, str]:
    """Make sure that rows of these months have a place, in one round trip when they have; returns the partitions of sessions.

    Others that need a new partition wait until this transaction commits; no other writer does.
    """
    wanted = sorted(set(months))
    there = await _partitions(conn, wanted)
    if _homeless(wanted, there):
        there = await _make_homes(conn, wanted)
    return {month: name for month in wanted for name in _homes("sessions", month) if name in there}


async def _make_homes(conn: AsyncConnection, wanted: list[Month]) -> set[str]:
    await take_lock(conn, Lock.PARTITION)
    this_year = (await conn.scalars(text("SELECT extract(year FROM now() AT TIME ZONE 'UTC')::int"))).one()
    there = await _partitions(conn, wanted)
    while homeless := _homeless(wanted, there):
        table, month = homeless[0]
        there.add(await _make(conn, table, _room_for(table, month, there, this_year=this_year)))
    return there


def _homes(table: str, month: Month) -> tuple[str, str]:
    """The partition of the month, and that of its year: a row's place is one of them."""
    return partition(table, *month), partition(table, month[0])


def _homeless(months: list[Month], there: set[str]) -> list[tuple[str, Month]]:
    return [(table, month) for table in PARTITIONED for month in months if there.isdisjoint(_homes(table, month))]


def _room_for(table: str, month: Month, there: set[str], *, this_year: int) -> tuple[int, int | None]:
    """The month, or its whole year if that is far and none of its months has a partition already."""
    year, _ = month
    near = abs(year - this_year) <= 1
    divided = any(partition(table, year, number) in there for number in range(1, DECEMBER + 1))
    return month if near or divided else (year, None)


async def _partitions(conn: AsyncConnection, months: list[Month]) -> set[str]:
    """The partitions of these months' years that exist.

    Read from the catalog's table: `to_regclass` answers from a cache that a wait for our lock does not refresh.
    """
    years = {year for year, _ in months}
    parts = (None, *range(1, DECEMBER + 1))
    names = [partition(table, year, number) for table in PARTITIONED for year in years for number in parts]
    found = await conn.execute(
        text("SELECT relname FROM pg_class WHERE relispartition AND relname = ANY(:names)"), {"names": names}
    )
    return set(found.scalars())


async def _make(conn: AsyncConnection, table: str, room: tuple[int, int | None]) -> str:
    """Make the partition; returns its name."""
    name, (year, number) = partition(table, *room), room
    first, beyond = _bounds(year, number)
    await conn.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
    await conn.execute(
        text(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{_first_day(first)}') TO ('{_first_day(beyond)}')")
    )
    return name


def _bounds(year: int, number: int | None) -> tuple[Month, Month]:
    """The first month of a partition, and the one after its last."""
    return ((year, 1), (year + 1, 1)) if number is None else ((year, number), _next((year, number)))


def _next(month: Month) -> Month:
    year, number = month
    return (year + 1, 1) if number == DECEMBER else (year, number + 1)


def _first_day(month: Month) -> str:
    year, number = month
    return f"{year:04}-{number:02}-01 00:00:00+00"
