"""How instants and durations are written: RFC 3339 in UTC with milliseconds and `Z`."""

from datetime import UTC, datetime, timedelta

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def rfc3339(at_ms: int) -> str:
    """`2026-11-21T10:00:00.000Z`."""
    seconds, ms = divmod(at_ms, SECOND_MS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ms:03d}Z"


def rfc3339_or_none(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)


def ms_of(instant: datetime) -> int:
    """Milliseconds since the epoch of an aware instant; what is finer is cut off."""
    return (instant - _EPOCH) // _MS
