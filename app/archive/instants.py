"""Instants as Postgres has them: aware datetimes in UTC. The way back is `app.domain.instants.ms_of`."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(at_ms: int) -> datetime:
    """Exact to the millisecond, which a division to seconds is not."""
    return _EPOCH + timedelta(milliseconds=at_ms)


def instant_or_none(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else instant(at_ms)
