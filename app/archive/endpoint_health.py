"""Rows of endpoints whose last attempt failed: failures in a row and the circuit breaker.

A delivery to a healthy endpoint writes nothing here.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from msgspec import Struct
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import instant_or_none
from app.domain.instants import ms_of

_READ = text("""
    SELECT endpoint_id, failures, opened_at, resume_at FROM endpoint_health
    WHERE endpoint_id = ANY(CAST(:endpoints AS uuid[])) ORDER BY endpoint_id FOR UPDATE
""")

_FORGET = text("DELETE FROM endpoint_health WHERE endpoint_id = ANY(CAST(:endpoints AS uuid[]))")

_SAVE = text("""
    INSERT INTO endpoint_health (endpoint_id, failures, opened_at, resume_at)
    SELECT * FROM unnest(CAST(:endpoints AS uuid[]), CAST(:failures AS int[]),
                         CAST(:opened AS timestamptz[]), CAST(:resumes AS timestamptz[]))
    ON CONFLICT (endpoint_id) DO UPDATE
    SET failures = excluded.failures, opened_at = excluded.opened_at, resume_at = excluded.resume_at
""")


class EndpointHealth(Struct, frozen=True):
    """Failures in a row, and the breaker (`app.delivery.retry`) if they opened it."""

    failures: int = 0
    opened_at_ms: int | None = None
    resume_at_ms: int | None = None


HEALTHY = EndpointHealth()


async def read(conn: AsyncConnection, endpoint_ids: Iterable[str]) -> dict[str, EndpointHealth]:
    """The health of these endpoints, locked until the transaction ends; a healthy one has none."""
    rows = await conn.execute(_READ, {"endpoints": list(endpoint_ids)})
    return {str(row.endpoint_id): EndpointHealth(row.failures, _ms(row.opened_at), _ms(row.resume_at)) for row in rows}


async def save(conn: AsyncConnection, health: Mapping[str, EndpointHealth]) -> None:
    well = [endpoint for endpoint, state in health.items() if state == HEALTHY]
    ill = {endpoint: state for endpoint, state in health.items() if state != HEALTHY}
    if well:
        await conn.execute(_FORGET, {"endpoints": well})
    if ill:
        parameters = {
            "endpoints": list(ill),
            "failures": [state.failures for state in ill.values()],
            "opened": [instant_or_none(state.opened_at_ms) for state in ill.values()],
            "resumes": [instant_or_none(state.resume_at_ms) for state in ill.values()],
        }
        await conn.execute(_SAVE, parameters)


def _ms(at: datetime | None) -> int | None:
    return None if at is None else ms_of(at)
