"""Groups closed sessions and computes metrics over each group, in two statements: the largest keys, then the numbers.

Time buckets come as their first instants: Postgres only places `opened_at` among them, so no rule of a time zone is in SQL. All
keys that are not among the largest are one group. It refuses nothing: the caller bounds how many groups or messages there can be.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Integer, Subquery, Text, bindparam, cast, func, literal_column, null, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import Grouping

from app.archive.analytics_metrics import CONTAINED, Dimension, Metric
from app.archive.session_reads import SessionFilter, conditions
from app.archive.sessions import message_of
from app.archive.tables import Timestamptz, messages, sessions
from app.domain.records import Message

_BEYOND = 1_000_000


class Buckets(Struct, frozen=True):
    """Time buckets: the first instant of each, ascending, and the number that its sessions are grouped under."""

    starts: Sequence[datetime]
    numbers: Sequence[int]


class GroupBy(Struct, frozen=True):
    """A grouping of sessions: the dimensions of their keys, their buckets, and the keys that have groups of their own.

    Keys may be left open to `app.archive.rollup.grouped` alone.
    """

    dimensions: Sequence[Dimension]
    buckets: Buckets | None
    keys: Sequence[str] | None


class Group(Struct, frozen=True):
    """One group's numbers: those of each metric's `aggregates`, in the order of the metrics."""

    bucket: int | None
    place: int | None  # of its key among the keys asked for; None: of all other keys
    numbers: list[tuple[int | None, ...]]


async def largest_keys(
    conn: AsyncConnection, wanted: SessionFilter, *, dimensions: Sequence[Dimension], since: datetime, limit: int
) -> list[str]:
    """The keys with the most sessions opened at or after `since`, then those with the most before it, as JSON arrays."""
    rows = _rows(wanted, dimensions=dimensions, buckets=None)
    recent = func.count().filter(rows.c.opened_at >= since)
    ranked = select(rows.c.key).group_by(rows.c.key).order_by(recent.desc(), func.count().desc(), rows.c.key).limit(limit)
    return list(await conn.scalars(ranked))


async def grouped(conn: AsyncConnection, wanted: SessionFilter, *, metrics: Sequence[Metric], by: GroupBy) -> list[Group]:
    """The metrics of the sessions wanted, by bucket and key; groups without a session are left out."""
    rows = _rows(wanted, dimensions=by.dimensions, buckets=by.buckets)
    place = func.array_position(bindparam("keys", list(by.keys or ()), type_=ARRAY(Text)), rows.c.key).label("place")
    aggregates: list[ColumnElement[Any]] = [literal_column(sql) for metric in metrics for sql in metric.aggregates]
    found = await conn.execute(select(rows.c.bucket, place, *aggregates).select_from(rows).group_by(rows.c.bucket, place))
    return [_group(tuple(row), metrics) for row in found]


def _rows(wanted: SessionFilter, *, dimensions: Sequence[Dimension], buckets: Buckets | None) -> Subquery:
    """The sessions wanted as `s`, each with its key and the number of its bucket."""
    key = cast(func.jsonb_build_array(*(sessions.c[dimension.column] for dimension in dimensions)), Text)
    return (
        select(sessions, key.label("key"), bucket_number(buckets, sessions.c.opened_at).label("bucket"))
        .where(*conditions(wanted))
        .subquery("s")
    )


def bucket_number(buckets: Buckets | None, at: ColumnElement[datetime]) -> ColumnElement[int | None]:
    """The number of the bucket that an instant is in."""
    if buckets is None:
        return cast(null(), Integer)
    starts = bindparam("starts", list(buckets.starts), type_=ARRAY(Timestamptz))
    numbers = bindparam("numbers", list(buckets.numbers), type_=ARRAY(Integer))
    return Grouping(numbers)[func.width_bucket(at, starts)]


def _group(row: tuple[int | None, ...], metrics: Sequence[Metric]) -> Group:
    bucket, place, *rest = row
    numbers = iter(None if number is None else int(number) for number in rest)
    split = [tuple(islice(numbers, len(metric.aggregates))) for metric in metrics]
    return Group(bucket, None if place is None else place - 1, split)


class HistoryLine(Struct, frozen=True):
    """A message of the archive, and what its session says of it."""

    message: Message
    channel: str
    conversation_id: str


async def history(conn: AsyncConnection, wanted: SessionFilter, *, limit: int) -> list[HistoryLine]:
    """The messages of all sessions wanted, in the order in which they were received."""
    of_session = (messages.c.session_id == sessions.c.id) & (messages.c.opened_at == sessions.c.opened_at)
    found = await conn.execute(
        select(messages, sessions.c.channel, sessions.c.conversation_id)
        .join_from(sessions, messages, of_session)
        .where(*conditions(wanted))
        .order_by(messages.c.received_at, messages.c.session_id, messages.c.sequence)
        .limit(limit)
    )
    return [HistoryLine(message_of(row), row.channel, row.conversation_id) for row in found]


class PathCount(Struct, frozen=True):
    """How many sessions took a path, and how many of them were contained."""

    path: list[str]
    sessions: int
    contained: int


class Paths(Struct, frozen=True):
    """The number of sessions, how many of them came to each step of a funnel, and the paths that most of them took."""

    sessions: int
    reached: list[int]
    top: list[PathCount]


async def paths(
    conn: AsyncConnection, wanted: SessionFilter, *, steps: Sequence[str], depth: int, with_outcome: bool, limit: int
) -> Paths:
    """Sessions by their path: their first intents in order, and then their outcome if that is asked for.

    A session came to a step if its intent comes after that of the step before. One pass over the sessions counts all.
    """
    rows = _conversed(wanted)
    first = rows.c.intents[1:depth]
    path = (func.array_append(first, rows.c.outcome) if with_outcome else first).label("path")
    places: list[ColumnElement[Any]] = []
    for step in steps:
        # Without the step before, the search begins beyond the end of every list.
        begin = func.coalesce(places[-1] + 1, _BEYOND) if places else 1
        places.append(func.array_position(rows.c.intents, step, begin))
    contained = func.count().filter(literal_column(CONTAINED))
    whole = (func.sum(count).over() for count in (func.count(), *map(func.count, places)))
    ranked = select(path, func.count(), contained, *whole).group_by(path).order_by(func.count().desc(), path).limit(limit)
    found = (await conn.execute(ranked)).all()
    sessions, *reached = (int(number) for number in (found[0][3:] if found else [0] * (1 + len(places))))
    return Paths(sessions, reached, [PathCount(*row[:3]) for row in found])


def _conversed(wanted: SessionFilter) -> Subquery:
    """The sessions wanted that count and in which the user took part, as `s`."""
    return select(sessions).where(*conditions(wanted), sessions.c.counted, sessions.c.interactive).subquery("s")
