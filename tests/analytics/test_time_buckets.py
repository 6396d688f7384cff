"""Time buckets cover a period without gap or overlap, and begin where a calendar says, whatever a zone's clocks do."""

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Invalid
from app.queries.time_buckets import Unit, bucket_starts, hour_of_week, previous_period, zone_of

ODD_ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Havana",  # the clock goes back at 01:00, so that there are two midnights
    "Africa/Cairo",  # it goes forward at midnight, so that there is none
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # skipped 30 December 2011
    "America/St_Johns",  # went back at 00:01 until 2011
    "Asia/Kathmandu",
)
UNITS: tuple[Unit, ...] = ("hour", "day", "week", "month")
LONGEST = {"hour": timedelta(hours=1), "day": timedelta(hours=25), "week": timedelta(hours=169), "month": timedelta(hours=745)}
INSTANTS = st.datetimes(datetime(2009, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds are naive here


@given(unit=st.sampled_from(UNITS), zone=st.sampled_from(ODD_ZONES), start=INSTANTS, hours=st.integers(1, 2000))
def test_buckets_are_in_order_and_begin_on_the_calendar(unit: Unit, zone: str, start: datetime, hours: int) -> None:
    """The first holds the start, the last begins before the end, and none is longer than its unit can be."""
    name = ZoneInfo(zone)
    end = start + timedelta(hours=hours)
    starts = bucket_starts(unit, name, start=start, end=end, limit=10_000)

    assert starts[0] <= start < (starts[1] if len(starts) > 1 else end)
    assert starts[-1] < end
    assert all(timedelta() < later - at <= LONGEST[unit] for at, later in itertools.pairwise(starts))
    for at in starts:
        local, just_before = at.astimezone(name), (at - timedelta(microseconds=1)).astimezone(name)
        if unit == "hour":
            turned = local.utcoffset() != just_before.utcoffset()
            assert turned or (local.minute, local.second) == (0, 0)
        else:
            assert local.date() != just_before.date() or local.replace(tzinfo=None) < just_before.replace(tzinfo=None)
        if unit == "week":
            assert local.weekday() == 0
        if unit == "month":
            assert local.day == 1


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    (("Europe/Berlin", "2026-03-29", 23), ("Europe/Berlin", "2026-10-25", 25), ("UTC", "2026-03-29", 24)),
)
def test_a_day_has_as_many_hours_as_the_clock_shows(zone: str, day: str, hours: int) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    first, second = bucket_starts("day", ZoneInfo(zone), start=start, end=start + timedelta(hours=36), limit=10)

    assert second - first == timedelta(hours=hours)
    assert len(bucket_starts("hour", ZoneInfo(zone), start=first, end=second, limit=100)) == hours


def test_the_hour_that_comes_twice_is_two() -> None:
    starts = bucket_starts(
        "hour",
        ZoneInfo("Europe/Berlin"),
        start=datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
        end=datetime(2026, 10, 25, 2, 0, tzinfo=UTC),
        limit=10,
    )

    assert [at.astimezone(ZoneInfo("Europe/Berlin")).isoformat() for at in starts] == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:00:00+01:00",
    ]


@pytest.mark.parametrize(
    ("start", "end", "before"),
    (
        ("2026-03-01T00:00", "2026-04-01T00:00", "2026-02-01T00:00"),  # a month, though February is shorter
        ("2026-01-01T00:00", "2027-01-01T00:00", "2025-01-01T00:00"),
        ("2026-03-23T00:00", "2026-03-30T00:00", "2026-03-16T00:00"),  # a week of 167 hours
        ("2026-03-29T12:00", "2026-03-29T18:00", "2026-03-29T06:00"),
    ),
)
def test_the_period_before_is_as_long_by_the_calendar(start: str, end: str, before: str) -> None:
    zone = ZoneInfo("Europe/Berlin")
    at = [datetime.fromisoformat(text).replace(tzinfo=zone) for text in (start, end, before)]

    assert previous_period(zone, start=at[0], end=at[1]) == (at[2], at[0])


def test_the_week_begins_on_monday() -> None:
    zone = ZoneInfo("Europe/Berlin")

    assert hour_of_week(datetime(2026, 11, 15, 23, 0, tzinfo=UTC), zone) == 0
    assert hour_of_week(datetime(2026, 11, 15, 22, 59, tzinfo=UTC), zone) == 167


@pytest.mark.parametrize("name", ("", "Mars/Olympus", "../../etc/passwd", "\x00", "Europe"))
def test_a_zone_that_is_not_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        zone_of(name)


def test_too_many_buckets_are_refused() -> None:
    start = datetime(1, 1, 2, tzinfo=UTC)

    with pytest.raises(Invalid):
        bucket_starts("hour", ZoneInfo("UTC"), start=start, end=datetime(9999, 1, 1, tzinfo=UTC), limit=100)
