"""Instants as Postgres has them: aware datetimes in UTC. The way back is `app.domain.instants.ms_of`."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# A day within what Python knows: its very ends mean infinity to asyncpg.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC)
_LATEST = datetime(9999, 12, 30, tzinfo=UTC)


def instant(at_ms: int) -> datetime:
    """Exact to the millisecond, which a division to seconds is not; what lies outside the calendar is put at its end."""
    try:
        return _EPOCH + timedelta(milliseconds=at_ms)
    except OverflowError:
        return _LATEST if at_ms > 0 else _EARLIEST


def instant_or_none(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else instant(at_ms)
