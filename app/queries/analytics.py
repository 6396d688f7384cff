"""Answers one question over closed sessions: metrics by time and by dimensions, beside the period before if asked for.

Bounded: at most `MOST_GROUPS` groups, and the archive's statement timeout. All keys beyond the `top` largest are one group,
`other`. Each number carries the address of the list of its sessions, where `GET /v1/sessions` can show it.

`compare` counts a bot's archived sessions as each of the four systems does and as its own policy does, by `decide`. It refuses
more than `MOST_MESSAGES` messages, and other requests are served between the slices of its work.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, cast, get_args
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from msgspec import Struct, json, structs
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import analytics, rollup
from app.archive.analytics import Buckets, Group, GroupBy
from app.archive.analytics_metrics import Dimension, Metric
from app.archive.rollup import HourTable
from app.archive.session_reads import SessionFilter
from app.domain.comparison import Difference, Line, Ratio, Rerun, differences, totals
from app.domain.errors import Fault
from app.domain.instants import DAY_MS, ms_of, rfc3339
from app.domain.policy.model import Policy
from app.domain.policy.parse import policy_from
from app.domain.transcript import entry_from
from app.errors import Invalid
from app.queries.time_buckets import Unit, bucket_starts, hour_of_week, previous_period, zone_of

MOST_GROUPS = 10_000
ROLLED_UP_FROM_MS = 7 * DAY_MS
"""Shorter periods are counted from the sessions, so that their percentiles are exact."""

HOURS_OF_WEEK = 168

TimeDimension = Literal["hour", "day", "week", "month", "hour_of_week"]
TIME_DIMENSIONS: tuple[TimeDimension, ...] = get_args(TimeDimension)

Groups = dict[tuple[int, int | None], Group]
"""By the number of the bucket and the place of the key."""


class CountedGroups(Struct, frozen=True):
    """The groups that have sessions, the keys of their places, and whether the roll-up gave their distributions."""

    keys: Sequence[str]
    groups: Groups
    rolled_up: bool


_NARROWER = "ask for a shorter period, longer buckets or a smaller `top`"


class ListAddress(Struct, frozen=True):
    """The list of sessions that numbers link to: its path, the filters that were asked for, and the names of all it has."""

    path: str
    filters: Mapping[str, Sequence[str]]
    known: frozenset[str]

    def url(self, more: Mapping[str, str]) -> str | None:
        """The list narrowed down; None if it has no such filter, or if only other values of one were asked for."""
        if not more.keys() <= self.known or any(value not in self.filters.get(name, [value]) for name, value in more.items()):
            return None
        whole: Mapping[str, Sequence[str]] = {**self.filters, **{name: [value] for name, value in more.items()}}
        return f"{self.path}?{'&'.join([_parameter(name, value) for name, values in whole.items() for value in values])}"


@lru_cache(maxsize=4_096)
def _parameter(name: str, value: str) -> str:
    """A parameter of an address. An answer has thousands of addresses that share most of theirs."""
    return urlencode({name: value})


class Period(Struct, frozen=True):
    """From `start`, which is included, to `end`, which is not."""

    start: datetime
    end: datetime

    @property
    def view(self) -> dict[str, Any]:
        return {"from": rfc3339(ms_of(self.start)), "to": rfc3339(ms_of(self.end))}


class Question(Struct, frozen=True, kw_only=True):
    """A question. `wanted` has no bounds on `opened_at`: `period` has them."""

    wanted: SessionFilter
    period: Period
    time_zone: str
    metrics: Sequence[Metric]
    dimensions: Sequence[Dimension]
    time: TimeDimension | None
    top: int
    compare: bool
    listed: ListAddress

    @property
    def zone(self) -> ZoneInfo:
        """Raises `Invalid` if there is no such zone."""
        return zone_of(self.time_zone)


class Division(Struct, frozen=True):
    """A period in time buckets, and as groups show them: the label of each, and the part of the period that is in it."""

    period: Period
    buckets: Buckets | None
    labels: Sequence[object]
    parts: Sequence[Period | None]  # None: an hour of the week is no one part


async def answer(engine: AsyncEngine, question: Question) -> dict[str, Any]:
    """The groups asked for, as JSON. Raises `Invalid` if there would be too many."""
    period, zone = question.period, question.zone
    try:
        division = _divide(question, period)
        before = Period(*previous_period(zone, start=period.start, end=period.end)) if question.compare else None
        earlier_division = _divide(question, before) if before else None
    except (OverflowError, ValueError) as error:
        fault = Fault("from", "the period goes beyond the calendar", "ask for a period between the years 2 and 9998")
        raise Invalid("the period is not valid", faults=(fault,)) from error
    async with engine.connect() as plain:
        # One snapshot: the keys and the numbers are of the same sessions.
        conn = await plain.execution_options(isolation_level="REPEATABLE READ")
        keys = await _keys(conn, question, since=before.start) if before else None
        groups = await _groups(conn, question, division, keys)
        earlier = await _groups(conn, question, earlier_division, groups.keys) if earlier_division else None
    return {
        **period.view,
        "time_zone": question.time_zone,
        "group_by": [*([question.time] if question.time else []), *(dimension.name for dimension in question.dimensions)],
        "previous": before.view if before else None,
        "percentile_error_percent": rollup.ERROR_PERCENT if any(each.rolled_up for each in (groups, earlier) if each) else 0,
        "groups": list(
            _views(question, division, keys=groups.keys, groups=groups.groups, earlier=earlier.groups if earlier else None)
        ),
    }


async def _keys(conn: AsyncConnection, question: Question, *, since: datetime) -> list[str]:
    """The keys that have groups of their own, counted from the sessions."""
    if not question.dimensions:
        return ["[]"]
    wanted = _within(question.wanted, Period(since, question.period.end))
    return await analytics.largest_keys(
        conn, wanted, dimensions=question.dimensions, since=question.period.start, limit=question.top
    )


async def _groups(conn: AsyncConnection, question: Question, division: Division, keys: Sequence[str] | None) -> CountedGroups:
    """The numbers of each group: from the roll-up those that it has, if it can answer the question, else from the sessions.

    Without `keys` they are the largest of the period. Raise `Invalid` if there are too many groups.
    """
    wanted = _within(question.wanted, division.period)
    into = _rolls_up(question, division.period, buckets=division.buckets)
    hours = None if into is None else await rollup.source(conn, into, wanted)
    if into is None or hours is None:
        keys = await _keys(conn, question, since=division.period.start) if keys is None else keys
        counted = await _counted(conn, question, division, keys, metrics=question.metrics)
        return CountedGroups(keys, counted, rolled_up=False)
    rolled = [metric for metric in question.metrics if into.has(metric)]
    others = [metric for metric in question.metrics if not into.has(metric)]
    by = GroupBy(question.dimensions, division.buckets, keys if question.dimensions else ["[]"])
    keys, found = await rollup.grouped(conn, hours, metrics=rolled, by=by, top=question.top, most=MOST_GROUPS)
    _refuse_too_many(max(len(found), _count(question, division, keys)))
    counted = await _counted(conn, question, division, keys, metrics=others) if others else {}
    merged = {place: _merged(question, into, group, counted.get(place)) for place, group in _by_place(found).items()}
    return CountedGroups(keys, merged, rolled_up=bool(into.spreads))


async def _counted(
    conn: AsyncConnection, question: Question, division: Division, keys: Sequence[str], *, metrics: Sequence[Metric]
) -> Groups:
    """Numbers counted from the sessions. Raise `Invalid` if there are too many groups."""
    _refuse_too_many(_count(question, division, keys))
    by = GroupBy(question.dimensions, division.buckets, keys)
    return _by_place(await analytics.grouped(conn, _within(question.wanted, division.period), metrics=metrics, by=by))


def _count(question: Question, division: Division, keys: Sequence[str]) -> int:
    return len(division.labels) * (len(keys) + bool(question.dimensions))


def _by_place(found: Sequence[Group]) -> Groups:
    return {(group.bucket or 0, group.place): group for group in found}


def _merged(question: Question, into: HourTable, summed: Group, counted: Group | None) -> Group:
    """The numbers of both, in the order of the metrics."""
    from_hours, from_sessions = iter(summed.numbers), iter(counted.numbers if counted else ())
    numbers = [next(from_hours) if into.has(metric) else next(from_sessions, ()) for metric in question.metrics]
    return structs.replace(summed, numbers=numbers)


def _rolls_up(question: Question, period: Period, *, buckets: Buckets | None) -> HourTable | None:
    """The table of the roll-up that knows filters and dimensions, if its hours fit into the buckets and the period is long."""
    within = _within(question.wanted, period)
    # In ms: a filter may begin after the last instant that there is.
    length_ms = (within.opened_to_ms or 0) - (within.opened_from_ms or 0)
    if length_ms < ROLLED_UP_FROM_MS or any(start.timestamp() % 3_600 for start in (buckets.starts if buckets else ())):
        return None
    dimensions = {dimension.name for dimension in question.dimensions}
    fitting = (
        into for into in rollup.TABLES if into.knows(question.wanted.given, dimensions) and any(map(into.has, question.metrics))
    )
    return next(fitting, None)


def _within(wanted: SessionFilter, period: Period) -> SessionFilter:
    """The filter, of sessions opened in the period; a bound of its own that is narrower stays."""
    start_ms, end_ms = ms_of(period.start), ms_of(period.end)
    own_from_ms, own_to_ms = wanted.opened_from_ms, wanted.opened_to_ms
    return structs.replace(
        wanted,
        opened_from_ms=start_ms if own_from_ms is None else max(start_ms, own_from_ms),
        opened_to_ms=end_ms if own_to_ms is None else min(end_ms, own_to_ms),
    )


def _refuse_too_many(groups: int) -> None:
    if groups > MOST_GROUPS:
        fault = Fault("group_by", f"it gives {groups} groups, and {MOST_GROUPS} is the most", _NARROWER)
        raise Invalid("there would be too many groups", faults=(fault,))


def _divide(question: Question, period: Period) -> Division:
    """The period in the buckets asked for; undivided, it is one."""
    if question.time is None:
        return Division(period, None, [None], [period])
    weekly = question.time == "hour_of_week"
    unit = cast("Unit", "hour" if weekly else question.time)
    starts = bucket_starts(unit, question.zone, start=period.start, end=period.end, limit=MOST_GROUPS)
    if weekly:
        numbers = [hour_of_week(start, question.zone) for start in starts]
        return Division(period, Buckets(starts, numbers), range(HOURS_OF_WEEK), [None] * HOURS_OF_WEEK)
    ends = [*starts[1:], period.end]
    parts = [Period(max(start, period.start), end) for start, end in zip(starts, ends, strict=True)]
    labels = [start.astimezone(question.zone).isoformat() for start in starts]
    return Division(period, Buckets(starts, range(len(starts))), labels, parts)


def _views(
    question: Question, division: Division, *, keys: Sequence[str], groups: Groups, earlier: Groups | None
) -> Iterator[dict[str, Any]]:
    """Every bucket by every key, empty ones too: a chart needs its zeros. `other` comes last, where there is any."""
    named: list[tuple[int | None, list[Any] | None]] = [(place, json.decode(key)) for place, key in enumerate(keys)]
    if any(place is None for _, place in (*groups, *(earlier or ()))):
        named.append((None, None))
    for bucket, (label, part) in enumerate(zip(division.labels, division.parts, strict=True)):
        bounds, shown = _bounds_listed(question, part), part.view if part else {"from": None, "to": None}
        for place, values in named:
            view: dict[str, Any] = {"key": _key(question, label, values), "other": values is None, **shown}
            view["metrics"] = _metrics(question, groups.get((bucket, place)), listed=_filters(question, bounds, values))
            if earlier is not None:
                view["previous"] = _metrics(question, earlier.get((bucket, place)), listed=None)
            yield view


def _key(question: Question, label: object, values: list[Any] | None) -> dict[str, Any]:
    named = zip(question.dimensions, values or [None] * len(question.dimensions), strict=True)
    return ({question.time: label} if question.time else {}) | {dimension.name: value for dimension, value in named}


def _bounds_listed(question: Question, part: Period | None) -> dict[str, str] | None:
    """The filters that list the sessions of a part of the period; None for an hour of the week, which no list has."""
    if part is None:
        return None
    within = _within(question.wanted, part)
    return {"opened_from": rfc3339(within.opened_from_ms or 0), "opened_to": rfc3339(within.opened_to_ms or 0)}


def _filters(question: Question, bounds: dict[str, str] | None, values: list[Any] | None) -> dict[str, str] | None:
    """The filters that list a group's sessions; None if none do: of `other`, of an hour of the week, of no value."""
    if bounds is None or values is None or None in values:
        return None
    return bounds | {each.listed_by: _text(value) for each, value in zip(question.dimensions, values, strict=True)}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _metrics(question: Question, group: Group | None, *, listed: Mapping[str, str] | None) -> dict[str, Any]:
    numbers = [()] * len(question.metrics) if group is None else group.numbers
    return {
        metric.name: metric.of(found) | {"sessions_url": _url(question.listed, metric, listed)}
        for metric, found in zip(question.metrics, numbers, strict=True)
    }


def _url(address: ListAddress, metric: Metric, listed: Mapping[str, str] | None) -> str | None:
    if listed is None or metric.listed_by is None:
        return None
    # Both may name one filter: if its values differ, no list is of sessions that meet both.
    if any(listed.get(name, value) != value for name, value in metric.listed_by.items()):
        return None
    return address.url({**listed, **metric.listed_by})


async def answer_paths(
    engine: AsyncEngine, wanted: SessionFilter, period: Period, *, steps: Sequence[str], depth: int, with_outcome: bool, top: int
) -> dict[str, Any]:
    """The paths that most sessions took by their intents, and the funnel of `steps`, as JSON."""
    within = _within(wanted, period)
    async with engine.connect() as conn:
        found = await analytics.paths(conn, within, steps=steps, depth=depth, with_outcome=with_outcome, limit=top)
    whole = found.sessions
    return {
        **period.view,
        "sessions": whole,
        "paths": [
            {"path": one.path, "share": _share(one.sessions, whole), "contained": _share(one.contained, one.sessions)}
            for one in found.top
        ],
        "other": whole - sum(one.sessions for one in found.top),
        "steps": [{"intent": step, "share": _share(count, whole)} for step, count in zip(steps, found.reached, strict=True)],
    }


def _share(part: int, whole: int) -> dict[str, Any]:
    return {"part": part, "whole": whole, "percent": Ratio(part, whole).percent}


VENDORS = ("kore", "botanalytics", "reamaze", "aivo")
"""The presets that stand for the four systems."""

MOST_MESSAGES = 20_000
_SLICE = 100  # decisions; about a millisecond


async def compare(engine: AsyncEngine, bot: str, wanted: SessionFilter, *, policy: Policy) -> dict[str, Any]:
    """The count of each definition, the bot's own first. Raises `Invalid` if there are too many messages."""
    async with engine.connect() as conn:
        found = await analytics.history(conn, wanted, limit=MOST_MESSAGES + 1)
    if len(found) > MOST_MESSAGES:
        fault = Fault("to", f"the sessions have more than {MOST_MESSAGES} messages", "ask for a shorter period")
        raise Invalid("there is too much to count again", faults=(fault,))
    history = [_line(number, one) for number, one in enumerate(found)]
    ours = await _rerun(bot, policy, history)
    theirs = {name: await _rerun(bot, policy_from({"preset": name}), history) for name in VENDORS}
    return {
        "messages": len(history),
        "definitions": [_view("own", ours, ours), *(_view(name, rerun, ours) for name, rerun in theirs.items())],
    }


def _line(number: int, one: analytics.HistoryLine) -> Line:
    entry = entry_from(one.message, channel=one.channel, conversation_id=one.conversation_id)
    return Line(number, one.message.received_at_ms, entry)


async def _rerun(bot: str, policy: Policy, history: list[Line]) -> Rerun:
    made = Rerun(bot, policy)
    for number, line in enumerate(history):
        made.feed(line)
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return made


def _view(name: str, theirs: Rerun, ours: Rerun) -> dict[str, Any]:
    counted = totals(theirs.sessions())
    contained = structs.asdict(counted.contained) | {"percent": counted.contained.percent}
    found = differences(theirs, ours)
    return {
        "definition": name,
        **structs.asdict(counted),
        "contained": contained,
        "refused_entries": theirs.refused,
        "difference": sum(each.more - each.fewer for each in found),
        "reasons": [_reason(each) for each in found],
    }


def _reason(each: Difference) -> dict[str, Any]:
    settings = {name: {"theirs": theirs, "own": own} for name, (theirs, own) in each.settings.items()}
    return {"reason": each.reason, "channel": each.channel, "more": each.more, "fewer": each.fewer, "settings": settings}
