"""Adds up closed sessions: number, billing, outcomes. Only sessions that count are added; the others stand apart."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.session_reads import SessionFilter, conditions
from app.archive.tables import sessions
from app.domain.ratio import Ratio

_GROUPS = (
    sessions.c.counted,
    sessions.c.outcome,
    sessions.c.reason,
    sessions.c.trade,
    sessions.c.interactive,
    sessions.c.contained,
)


class SessionSummary(Struct, frozen=True):
    """Sums over the sessions that count; `not_counted` are those that the policy keeps without counting them."""

    sessions: int
    not_counted: int
    interactive: int
    billing_sessions: int
    interactions: int
    contained: Ratio
    by_outcome: dict[str, int]
    by_reason: dict[str, int]
    by_trade: dict[str, int]


async def summarise(conn: AsyncConnection, wanted: SessionFilter) -> SessionSummary:
    """The totals of the sessions wanted. One pass: grouped in SQL by every distinction, then added up here."""
    summed = (
        func.count().label("sessions"),
        func.sum(sessions.c.billing_sessions).label("billing_sessions"),
        func.sum(sessions.c.interactions).label("interactions"),
    )
    rows = (await conn.execute(select(*_GROUPS, *summed).where(*conditions(wanted)).group_by(*_GROUPS))).all()
    counted = [row for row in rows if row.counted]
    count = _sum(counted, "sessions")
    return SessionSummary(
        sessions=count,
        not_counted=_sum(rows, "sessions") - count,
        interactive=_sum([row for row in counted if row.interactive], "sessions"),
        billing_sessions=_sum(counted, "billing_sessions"),
        interactions=_sum(counted, "interactions"),
        contained=Ratio(_sum([row for row in counted if row.contained], "sessions"), count),
        by_outcome=_by(counted, sessions.c.outcome),
        by_reason=_by(counted, sessions.c.reason),
        by_trade=_by(counted, sessions.c.trade),
    )


def _sum(rows: Sequence[Row[Any]], name: str) -> int:
    return sum(int(getattr(row, name)) for row in rows)


def _by(rows: Sequence[Row[Any]], column: Column[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        value = getattr(row, column.name)
        found[value] = found.get(value, 0) + int(row.sessions)
    return found
