"""Rows of webhook endpoints, and the health of those whose last attempt failed: failures in a row and the circuit breaker.

A deleted endpoint stays, since its deliveries and attempts still name it. A delivery to a healthy one writes no health.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import endpoints, instant_or_none
from app.domain.instants import ms_of


async def create(conn: AsyncConnection, endpoint: str, bot: str, **values: object) -> Row[Any]:
    """The new row; `values` by column."""
    values |= {"id": endpoint, "bot_id": bot}
    row: Row[Any] = (await conn.execute(insert(endpoints).values(values).returning(endpoints))).one()
    return row


async def find(conn: AsyncConnection, endpoint: str) -> Row[Any] | None:
    """The endpoint, unless it is deleted."""
    found = await conn.execute(select(endpoints).where(endpoints.c.id == endpoint, endpoints.c.deleted_at.is_(None)))
    return found.one_or_none()


async def of_bot(conn: AsyncConnection, bot: str) -> list[Row[Any]]:
    """A bot's endpoints, the oldest first."""
    wanted = select(endpoints).where(endpoints.c.bot_id == bot, endpoints.c.deleted_at.is_(None)).order_by(endpoints.c.id)
    return list((await conn.execute(wanted)).all())


async def page(conn: AsyncConnection, bots: frozenset[str] | None, *, after: str | None, limit: int) -> list[Row[Any]]:
    """Endpoints of these bots (None: of all) by id, the oldest first, those after `after`."""
    wanted = select(endpoints).where(endpoints.c.deleted_at.is_(None)).order_by(endpoints.c.id).limit(limit)
    if bots is not None:
        wanted = wanted.where(endpoints.c.bot_id.in_(sorted(bots)))
    if after is not None:
        wanted = wanted.where(endpoints.c.id > after)
    return list((await conn.execute(wanted)).all())


async def change(conn: AsyncConnection, endpoint: str, changes: dict[str, Any]) -> Row[Any]:
    """The changed row of an endpoint that was found in this transaction."""
    changed = (
        update(endpoints).where(endpoints.c.id == endpoint).values(changes | {"updated_at": func.now()}).returning(endpoints)
    )
    row: Row[Any] = (await conn.execute(changed)).one()
    return row


async def delete(conn: AsyncConnection, endpoint: str) -> None:
    await conn.execute(update(endpoints).where(endpoints.c.id == endpoint).values(deleted_at=func.now()))


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


async def lock_health(conn: AsyncConnection, endpoint_ids: Iterable[str]) -> dict[str, EndpointHealth]:
    """The health of these endpoints, locked until the transaction ends; a healthy one has none."""
    rows = await conn.execute(_READ, {"endpoints": list(endpoint_ids)})
    return {str(row.endpoint_id): EndpointHealth(row.failures, _ms(row.opened_at), _ms(row.resume_at)) for row in rows}


async def save_health(conn: AsyncConnection, health: Mapping[str, EndpointHealth]) -> None:
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
