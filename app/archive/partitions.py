"""Makes the monthly partitions of `sessions` and `messages`, when a row wants them.

A partition is made beside its table and then attached, which locks neither readers nor writers out (`PARTITION OF` would).
Archivists that race for a new month wait for one another on an advisory lock.
"""

import re
from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.instants import instant

PARTITIONED = ("sessions", "messages")
PARTITION_LOCK = 0x61646A_02
DECEMBER = 12

Month = tuple[int, int]


def month_of(opened_at_ms: int) -> Month:
    """Year and month, in UTC."""
    at = instant(opened_at_ms)
    return at.year, at.month


def is_partition(table: str) -> bool:
    return re.fullmatch(r"(sessions|messages)_\d{4,5}_\d{2}", table) is not None


async def ensure_months(conn: AsyncConnection, months: Iterable[Month]) -> None:
    """Make sure that rows of these months have a place; one round trip when they have.

    Others that need a new month wait until this transaction commits; nobody else does.
    """
    wanted = sorted(set(months))
    if not await _missing(conn, wanted):
        return
    await conn.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PARTITION_LOCK})
    for table, month in await _missing(conn, wanted):
        await _make(conn, table, month)


async def _missing(conn: AsyncConnection, months: list[Month]) -> list[tuple[str, Month]]:
    """Read from the catalog's table: `to_regclass` answers from a cache that a wait for our lock does not refresh."""
    wanted = {partition(table, month): (table, month) for month in months for table in PARTITIONED}
    found = await conn.execute(
        text("SELECT relname FROM pg_class WHERE relispartition AND relname = ANY(:names)"), {"names": list(wanted)}
    )
    return [wanted[name] for name in sorted(set(wanted) - set(found.scalars()))]


def partition(table: str, month: Month) -> str:
    year, number = month
    return f"{table}_{year:04}_{number:02}"


async def _make(conn: AsyncConnection, table: str, month: Month) -> None:
    name = partition(table, month)
    await conn.execute(text(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)"))
    await conn.execute(
        text(
            f"ALTER TABLE {table} ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{_first_day(month)}') TO ('{_first_day(_next(month))}')"
        )
    )


def _next(month: Month) -> Month:
    year, number = month
    return (year + 1, 1) if number == DECEMBER else (year, number + 1)


def _first_day(month: Month) -> str:
    year, number = month
    return f"{year:04}-{number:02}-01 00:00:00+00"
