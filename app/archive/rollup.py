"""The roll-ups of closed sessions by hour, bot, developer and `TABLES`' dimensions: kept up to date, rebuilt, verified and read.

A trigger notes the hour of every session that is inserted, updated or deleted in `stale_hours`, in the same transaction, whatever
made the change; `app.archive.sessions` notes what it copies into a partition by name. `roll_up` takes such notes and computes
their hours anew from the sessions: a note that it sees was committed together with its change, and a change that it does not see
yet has a note that stays. So the roll-up is exact after any crash, repeat and late entry. Notes are taken by bot and hour, so
that rows are written in the order in which they are read.

A read takes the hours that are not stale from the roll-up and all others from the sessions, in one snapshot: it is exact, too,
however far the roll-up is behind.

Distributions are counted by channel, in steps of 2 %: a percentile read from them is at most 1 % off. It refuses what does not
add up over hours: distinct users, and metrics about other sessions of the user.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from msgspec import Struct
from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Row,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    select,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive.analytics import Group, GroupBy, bucket_number
from app.archive.analytics_metrics import ADDING_UP, COUNTS, OUTCOME_DIMENSIONS, OUTCOME_METRICS, SPREADS, Dimension, Metric
from app.archive.engine import Lock, take_lock
from app.archive.session_reads import SessionFilter, conditions
from app.archive.tables import (
    Timestamptz,
    instant,
    session_hours,
    session_intent_hours,
    session_outcome_hours,
    sessions,
    stale_hours,
)

ERROR_PERCENT = 1
"""How far a percentile from the roll-up may be off."""

HOUR = timedelta(hours=1)
GAMMA = 1.02
MOST_STALE = 2_000

_PERCENTILES = (0.5, 0.9, 0.99)
_HOURS_AT_ONCE = 300
_BEYOND_MS = 2**53  # in either direction beyond the calendar
_WIDE = frozenset({"detail", "session_metadata", "tags", "intents"})
_NARROW = [each for each in sessions.c if each.name not in _WIDE]

_HOUR = func.date_trunc("hour", sessions.c.opened_at, "UTC").label("hour")

_TAKE = text("""
    WITH noted AS (
        SELECT DISTINCT bot_id, hour FROM stale_hours WHERE id <= :last ORDER BY bot_id, hour LIMIT :hours
    )
    DELETE FROM stale_hours USING noted WHERE stale_hours.bot_id = noted.bot_id AND stale_hours.hour = noted.hour
    RETURNING stale_hours.bot_id, stale_hours.hour
""")
_NOTE_ALL = text("""
    INSERT INTO stale_hours (bot_id, hour)
    SELECT bot_id, date_trunc('hour', opened_at, 'UTC') FROM sessions WHERE opened_at >= :start AND opened_at < :end
    UNION SELECT bot_id, hour FROM session_hours WHERE hour >= :start AND hour < :end
""")
_DAYS = text("""
    SELECT date_trunc('day', opened_at, 'UTC') FROM sessions UNION SELECT date_trunc('day', hour, 'UTC') FROM session_hours
    ORDER BY 1
""")


class HourTable(Struct, frozen=True):
    """A table of the roll-up: its rows are of an hour, a bot, a value of each of `dimensions`, and `developer`.

    It has the sums of `summed`, and the distributions of `spreads`.
    """

    table: Table
    dimensions: tuple[str, ...]
    summed: tuple[Metric, ...]
    spreads: tuple[Metric, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        return ("bot_id", "hour", *self.dimensions, "developer")

    @property
    def names(self) -> list[str]:
        return [each.name for each in self.table.c]

    def has(self, metric: Metric) -> bool:
        """Whether it gives the numbers of the metric."""
        return metric in (self.spreads if metric.kind == "spread" else self.summed)

    def knows(self, filters: set[str], dimensions: set[str]) -> bool:
        """Whether its rows can be filtered and grouped so."""
        own = {"bots", *self.dimensions, "developer", "opened_from_ms", "opened_to_ms"}
        return filters <= own and dimensions <= {"bot", *self.dimensions}


BY_CHANNEL = HourTable(session_hours, ("channel",), ADDING_UP, SPREADS)
BY_INTENT = HourTable(session_intent_hours, ("intent",), COUNTS)
BY_OUTCOME = HourTable(session_outcome_hours, OUTCOME_DIMENSIONS, OUTCOME_METRICS)
TABLES = (BY_CHANNEL, BY_INTENT, BY_OUTCOME)

Columns = list[ColumnElement[Any]]
Hour = tuple[str, datetime]
"""A bot and an hour."""


async def last_note(conn: AsyncConnection) -> int:
    """The latest note of a stale hour; 0 without any."""
    latest: int = (await conn.scalars(select(func.coalesce(func.max(stale_hours.c.id), 0)))).one()
    return latest


async def roll_up(conn: AsyncConnection, *, last: int) -> int:
    """Compute some hours anew that were noted up to `last`, in the caller's transaction; returns how many: 0 if none is left.

    One process at a time does: a second one would write what it had read before the first wrote.
    """
    await take_lock(conn, Lock.ROLL_UP)
    taken = await conn.execute(_TAKE, {"last": last, "hours": _HOURS_AT_ONCE})
    hours = sorted({(bot, hour) for bot, hour in taken})
    for into in TABLES if hours else ():
        key = tuple_(into.table.c.bot_id, into.table.c.hour)
        await conn.execute(delete(into.table).where(key.in_(select(*_given(hours)))))
        rolled = _rolled(_sessions_of(hours).cte("s"), into).order_by(text("bot_id, hour"))
        await conn.execute(insert(into.table).from_select(into.names, rolled))
    return len(hours)


async def note_all(conn: AsyncConnection, start: datetime, end: datetime) -> None:
    """Note all hours of a period, so that they are rolled up again."""
    await conn.execute(_NOTE_ALL, {"start": start, "end": end})


async def days(conn: AsyncConnection) -> list[datetime]:
    """The days, in UTC, that have sessions or a roll-up."""
    return list(await conn.scalars(_DAYS))


async def wrong_hours(conn: AsyncConnection, start: datetime, end: datetime) -> list[Hour]:
    """The hours of a period, stale ones left out, whose roll-up differs from what their sessions give."""
    found = [hour for into in TABLES for hour in await _wrong_rows(conn, into, start, end)]
    return sorted(set(found))


async def _wrong_rows(conn: AsyncConnection, into: HourTable, start: datetime, end: datetime) -> list[Hour]:
    picked = select(*_NARROW, _HOUR).where(sessions.c.opened_at >= start, sessions.c.opened_at < end)
    right = _rolled(picked.cte("s"), into).subquery("expected")
    stored = select(into.table).where(into.table.c.hour >= start, into.table.c.hour < end).subquery("stored")
    there, expected = select(*(stored.c[name] for name in into.names)), select(*(right.c[name] for name in into.names))
    differing = union_all(expected.except_all(there), there.except_all(expected)).subquery("differing")
    key = (differing.c.bot_id, differing.c.hour)
    fresh = ~select(stale_hours).where(stale_hours.c.bot_id == key[0], stale_hours.c.hour == key[1]).exists()
    found = await conn.execute(select(*key).distinct().where(fresh))
    return [(row.bot_id, row.hour) for row in found]


class HourRows(Struct, frozen=True):
    """The rows of whole hours that a question is answered from: those of the roll-up, and others computed from the sessions."""

    rows: CTE


async def source(conn: AsyncConnection, into: HourTable, wanted: SessionFilter) -> HourRows | None:
    """The hours of the sessions wanted; None if too many are stale to gain anything."""
    start = instant(-_BEYOND_MS if wanted.opened_from_ms is None else wanted.opened_from_ms)
    end = instant(_BEYOND_MS if wanted.opened_to_ms is None else wanted.opened_to_ms)
    first, last = _hour_of(start - timedelta(microseconds=1)) + HOUR, _hour_of(end)
    stale = await _stale(conn, wanted, first, last)
    if len(stale) > MOST_STALE:
        return None
    rows = into.table
    stored = select(rows).where(rows.c.hour >= first, rows.c.hour < last, *_same(wanted, into))
    picked = [
        select(*_NARROW, _HOUR).where(*conditions(wanted), sessions.c.opened_at >= since, sessions.c.opened_at < until)
        for since, until in ((start, first), (last, end))  # the parts of hours at both ends
        if since < until
    ]
    if stale:
        key = tuple_(rows.c.bot_id, rows.c.hour)
        stored = stored.where(key.not_in(select(*_given(stale))))
        picked.append(_sessions_of(stale, *conditions(wanted)))
    return HourRows((union_all(stored, _rolled(union_all(*picked).cte("s"), into)) if picked else stored).cte("hours"))


async def grouped(
    conn: AsyncConnection, hours: HourRows, *, metrics: Sequence[Metric], by: GroupBy, top: int, most: int
) -> tuple[list[str], list[Group]]:
    """The keys that have groups of their own, and the metrics as `app.archive.analytics.grouped`, `most` + 1 groups at most.

    Without keys in `by`, they are the `top` ones with the most sessions: found in the same pass over the hours. Percentiles are
    exact to within `ERROR_PERCENT`.
    """
    rows, names = hours.rows, [name for metric in metrics for name in metric.sums]
    parts = [bucket_number(by.buckets, rows.c.hour).label("bucket"), *(rows.c[each.column] for each in by.dimensions)]
    sums = (func.sum(rows.c[name]).label(name) for name in sorted({"sessions", *names}))
    # Added up first: a key is then made for each, and not for each row.
    added = select(*parts, *sums).group_by(*parts).subquery()
    summed = select(added, _key(added, by.dimensions).label("key")).cte("by_key")
    ranked = _ranked(summed, by, top)
    found = await conn.execute(
        select(summed.c.bucket, ranked.c.place, func.max(ranked.c.key), *(func.sum(summed.c[name]) for name in names))
        .select_from(summed.outerjoin(ranked, ranked.c.key == summed.c.key))
        .group_by(summed.c.bucket, ranked.c.place)
        .limit(most + 1)
    )
    groups = found.all()
    keys = list(by.keys or dict(sorted({row[1]: row[2] for row in groups if row[1] is not None}.items())).values())
    place = func.array_position(bindparam("keys", keys, type_=ARRAY(Text)), _key(rows, by.dimensions)).label("place")
    spreads = {each.name: await _distributions(conn, rows, each, (parts[0], place)) for each in metrics if each.kind == "spread"}
    counts = [len(metric.sums) for metric in metrics]
    return keys, [_group(row, metrics, counts, spreads) for row in groups]


def _ranked(summed: CTE, by: GroupBy, top: int) -> CTE:
    """The keys that have groups of their own, each with its place from 1."""
    if by.keys is not None:
        given = func.unnest(bindparam("ranked", list(by.keys), type_=ARRAY(Text)))
        return select(given.table_valued("key", with_ordinality="place").render_derived(name="given")).cte("ranked")
    place = func.row_number().over(order_by=(func.sum(summed.c.sessions).desc(), summed.c.key)).label("place")
    return select(summed.c.key, place).group_by(summed.c.key).order_by(place).limit(top).cte("ranked")


async def _distributions(
    conn: AsyncConnection, rows: CTE, metric: Metric, group: tuple[ColumnElement[Any], ...]
) -> Mapping[tuple[Any, ...], list[tuple[int, int]]]:
    """Bucket and place to the steps of a metric's distribution, ascending, each with its count."""
    steps = func.unnest(rows.c[f"{metric.name}_steps"], rows.c[f"{metric.name}_counts"])
    pair = steps.table_valued(column("step", Integer), column("count", Integer), joins_implicitly=True).render_derived()
    count = func.sum(pair.c["count"])
    found: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    statement = select(*group, pair.c.step, count).select_from(rows, pair).group_by(*group, pair.c.step).order_by(pair.c.step)
    for row in await conn.execute(statement):
        bucket, place, step, sessions_there = tuple(row)
        found.setdefault((bucket, place), []).append((step, int(sessions_there)))
    return found


def _group(
    row: Row[Any], metrics: Sequence[Metric], counts: Sequence[int], spreads: Mapping[str, Mapping[tuple[Any, ...], Any]]
) -> Group:
    """A group from its row, which has so many sums of each metric."""
    bucket, place, _, *sums = tuple(row)
    left = iter(int(number) for number in sums)
    numbers: list[tuple[int | None, ...]] = []
    for metric, count in zip(metrics, counts, strict=True):
        values: tuple[int | None, ...] = tuple(islice(left, count))
        if metric.kind == "spread":
            values += tuple(percentiles(spreads[metric.name].get((bucket, place), [])))
        numbers.append(values)
    return Group(bucket, None if place is None else place - 1, numbers)


def percentiles(steps: Sequence[tuple[int, int]]) -> Iterator[int | None]:
    """The median and the other percentiles of a distribution, whose steps ascend."""
    whole = sum(count for _, count in steps)
    for at in _PERCENTILES:
        wanted, passed = whole * at, 0
        yield next((value_of(step) for step, count in steps if (passed := passed + count) >= wanted), None)


def value_of(step: int) -> int:
    """The value that stands for all of a step: at most `ERROR_PERCENT` off any of them, but for the rounding."""
    return round(2 * GAMMA ** (step - 1) / (GAMMA + 1)) if step > 0 else 0


def _step(value: str) -> str:
    """SQL of the step of a value: 0 for 0, and n for values above 1.02^(n-2) up to 1.02^(n-1)."""
    return f"CASE WHEN {value} < 1 THEN 0 ELSE ceil(ln(({value})::float8) / ln({GAMMA}::float8))::int + 1 END"


def _rolled(picked: CTE, into: HourTable) -> Select[Any]:
    """The rows of a table of the roll-up that these sessions give; `picked` is named `s` and has their hour."""
    key = _key_columns(into)
    sums: Columns = [literal_column(sql).label(name) for metric in into.summed for name, sql in metric.sums.items()]
    main = select(*key, *sums).select_from(picked).group_by(*key).cte("summed")
    joined: Any = main
    columns: Columns = list(main.c)
    for metric in into.spreads:
        steps = _steps(picked, metric, into)
        joined = joined.outerjoin(steps, and_(*(main.c[name] == steps.c[name] for name in into.key)))
        for part in ("steps", "counts"):
            name = f"{metric.name}_{part}"
            columns.append(func.coalesce(steps.c[part], literal_column("'{}'::int[]")).label(name))
    return select(*columns).select_from(joined)


def _key_columns(into: HourTable) -> Columns:
    return [literal_column(f"s.{name}").label(name) for name in into.key]


def _steps(picked: CTE, metric: Metric, into: HourTable) -> CTE:
    """The distribution of a metric in each row of the roll-up."""
    key = _key_columns(into)
    step: ColumnElement[int] = literal_column(_step(metric.value)).label("step")
    has_one: ColumnElement[bool] = literal_column(f"({metric.over}) AND ({metric.value}) IS NOT NULL")
    counted = select(*key, step, cast(func.count(), Integer).label("sessions")).select_from(picked).where(has_one)
    each = counted.group_by(*key, step).subquery()
    in_order: Columns = [func.array_agg(literal_column(f"{name} ORDER BY step")).label(part) for name, part in _PARTS]
    return (
        select(*(each.c[name] for name in into.key), *in_order)
        .group_by(*(each.c[name] for name in into.key))
        .cte(f"{metric.name}_steps")
    )


_PARTS = (("step", "steps"), ("sessions", "counts"))


def _sessions_of(hours: Sequence[Hour], *more: ColumnElement[bool]) -> Select[Any]:
    """The sessions of these hours that meet more conditions, with their hour.

    Hour by hour, each by the index: `OFFSET` keeps Postgres from joining all hours with all sessions.
    """
    given = select(*_given(hours)).cte("given")
    opened = sessions.c.opened_at
    of_hour = (sessions.c.bot_id == given.c.bot_id, opened >= given.c.hour, opened < given.c.hour + HOUR)
    found = select(*_NARROW).where(*of_hour, *more).offset(literal_column("0")).lateral("found")
    return select(*found.c, given.c.hour).select_from(given.join(found, true()))


def _given(hours: Sequence[Hour]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Bots and hours as two columns of as many rows."""
    bots = bindparam(None, [bot for bot, _ in hours], type_=ARRAY(Text), unique=True)
    starts = bindparam(None, [hour for _, hour in hours], type_=ARRAY(Timestamptz), unique=True)
    return func.unnest(bots).label("bot_id"), func.unnest(starts).label("hour")


async def _stale(conn: AsyncConnection, wanted: SessionFilter, start: datetime, end: datetime) -> list[Hour]:
    """The stale hours of a period, one more than `MOST_STALE` at most."""
    key = (stale_hours.c.bot_id, stale_hours.c.hour)
    found = select(*key).distinct().where(key[1] >= start, key[1] < end)
    if wanted.bots is not None:
        found = found.where(key[0].in_(sorted(wanted.bots)))
    return [(row.bot_id, row.hour) for row in await conn.execute(found.limit(MOST_STALE + 1))]


def _same(wanted: SessionFilter, into: HourTable) -> list[ColumnElement[bool]]:
    """The conditions of the filter on rows of a table of the roll-up."""
    rows = into.table
    given = {name: value for name in (*into.dimensions, "developer") if (value := getattr(wanted, name)) is not None}
    if wanted.bots is not None:
        given["bot_id"] = wanted.bots
    return [rows.c[name].in_(sorted(value) if isinstance(value, frozenset) else [value]) for name, value in given.items()]


def _key(rows: FromClause, dimensions: Sequence[Dimension]) -> ColumnElement[str]:
    return cast(func.jsonb_build_array(*(rows.c[dimension.column] for dimension in dimensions)), Text)


def _hour_of(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


class RollUp:
    """The worker's job."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run_once(self) -> int:
        """Roll up what is stale when it begins; returns how many hours. An hour that changes all the time would never end it."""
        rolled_up = 0
        async with self._engine.connect() as conn:
            last = await last_note(conn)
        while True:
            async with self._engine.begin() as conn:
                count = await roll_up(conn, last=last)
            rolled_up += count
            if count == 0:
                return rolled_up
