"""Instants and durations: in ms, and as RFC 3339 in UTC with milliseconds and `Z`."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
FIRST_MS = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
LAST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


def rfc3339(at_ms: int) -> str:
    """`2026-11-21T10:00:00.000Z`. It never fails: an instant that an offset has put outside the calendar becomes its end."""
    seconds, ms = divmod(max(FIRST_MS, min(at_ms, LAST_MS)), SECOND_MS)
    return f"{_second(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    """An instant without its fraction; the answers of a moment share few of them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def rfc3339_or_none(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


def instant_of(at_ms: int) -> datetime:
    """The aware instant, from `FIRST_MS` to `LAST_MS`."""
    return _EPOCH + at_ms * _MS


def ms_of(instant: datetime) -> int:
    """Milliseconds since the epoch of an aware instant; smaller units are cut off."""
    return (instant - _EPOCH) // _MS
