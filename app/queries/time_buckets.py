"""Divides a period into hours, days, weeks or months of a time zone. Pure: no SQL, no clock.

The buckets cover the period without gap or overlap, whatever the zone's clocks do: a day may have 23 or 25 hours, an hour during
which the clock was set by less than an hour is cut in two, and a skipped day is none.
It refuses zones that are not in the IANA database.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.domain.errors import Fault
from app.errors import Invalid

Unit = Literal["hour", "day", "week", "month"]

_HOUR = timedelta(hours=1)


def zone_of(name: str) -> ZoneInfo:
    """The time zone of this name. Raises `Invalid` if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        fault = Fault("time_zone", "there is no such time zone", "a name of the IANA database, such as Europe/Berlin or UTC")
        raise Invalid("the time zone is not known", faults=(fault,)) from None


def bucket_starts(unit: Unit, zone: ZoneInfo, *, start: datetime, end: datetime, limit: int) -> list[datetime]:
    """The first instants, in UTC, of the buckets from the one that `start` is in to the last that begins before `end`.

    Raises `Invalid` if there are more than `limit`.
    """
    found: list[datetime] = []
    for at in _hours(zone, start) if unit == "hour" else _dates(unit, zone, start):
        if at >= end:
            return found
        if found and at <= found[-1]:
            continue  # a day that the zone skipped
        found.append(at)
        if len(found) > limit:
            fault = Fault("group_by", f"the period has more than {limit} buckets", "ask for a shorter period or longer buckets")
            raise Invalid("there would be too many groups", faults=(fault,))
    return found


def previous_period(zone: ZoneInfo, *, start: datetime, end: datetime) -> tuple[datetime, datetime]:
    """The period just before, as long by the zone's calendar: whole months before whole months, else as many days and hours."""
    first, last = start.astimezone(zone).replace(tzinfo=None), end.astimezone(zone).replace(tzinfo=None)
    midnight = time()
    if first.day == last.day == 1 and first.time() == last.time() == midnight:
        return _instant(_months_before(first, _months_between(first, last)), zone), start
    return _instant(first - (last - first), zone), start


def hour_of_week(at: datetime, zone: ZoneInfo) -> int:
    """0 is Monday from midnight, 167 Sunday from 23:00."""
    local = at.astimezone(zone)
    return local.weekday() * 24 + local.hour


def _hours(zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    at = _hour_start(start, zone)
    while True:
        yield at
        at += _HOUR - _into_hour(at, zone)


def _hour_start(at: datetime, zone: ZoneInfo) -> datetime:
    """The first instant of the local hour; if the clock was set during it, the instant of that."""
    start = at - _into_hour(at, zone)
    if at.astimezone(zone).utcoffset() == start.astimezone(zone).utcoffset():
        return start.astimezone(UTC)
    return (start + _HOUR - _into_hour(start, zone)).astimezone(UTC)


def _into_hour(at: datetime, zone: ZoneInfo) -> timedelta:
    local = at.astimezone(zone)
    return timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)


def _dates(unit: Unit, zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    day = start.astimezone(zone).date()
    if unit == "week":
        day -= timedelta(days=day.weekday())
    elif unit == "month":
        day = day.replace(day=1)
    while True:
        yield _instant(datetime.combine(day, time()), zone)
        day = _next(unit, day)


def _next(unit: Unit, day: date) -> date:
    if unit == "month":
        return (day.replace(day=28) + timedelta(days=4)).replace(day=1)
    return day + timedelta(days=7 if unit == "week" else 1)


def _instant(local: datetime, zone: ZoneInfo) -> datetime:
    """Of a local time that there are two of, the first; of one that was skipped, the instant that the clock was set."""
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def _months_between(first: datetime, last: datetime) -> int:
    return (last.year - first.year) * 12 + last.month - first.month


def _months_before(at: datetime, count: int) -> datetime:
    month = at.year * 12 + at.month - 1 - count
    return at.replace(year=month // 12, month=month % 12 + 1)
