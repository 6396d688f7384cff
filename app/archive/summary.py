"""Adds up closed sessions: number, billing, outcomes. Only sessions that count are added; the others stand apart."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, Row, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.session_reads import SessionFilter, conditions
from app.archive.tables import sessions
from app.domain.comparison import Ratio

_GROUPS = (
    sessions.c.counted,
    sessions.c.outcome,
    sessions.c.reason,
    sessions.c.trade,
    sessions.c.interactive,
    sessions.c.contained,
)
_SUMS = (
    func.count().label("sessions"),
    func.sum(sessions.c.billing_sessions).label("billing_sessions"),
    func.sum(sessions.c.interactions).label("interactions"),
    func.sum(sessions.c.active_ms).label("active_ms"),
)


class Readings(Struct, frozen=True):
    """Containment as each of four systems counts it, over its own choice of sessions that count.

    kore          not handed off to a human, of the sessions in which the user took part
    botanalytics  of trade `bot`, of all
    reamaze       not escalated, of all
    aivo          not handed off to a human, of all
    """

    kore: Ratio
    botanalytics: Ratio
    reamaze: Ratio
    aivo: Ratio


class SessionSummary(Struct, frozen=True):
    """Sums over the sessions that count.

    sessions          sessions
    not_counted       sessions that the policy keeps without counting them, and that are in no other sum
    interactive       sessions in which the user took part
    billing_sessions  billing sessions
    interactions      messages by user, bot and agents
    active_ms         from the opening to the last entry that is no `activity`, of all sessions together
    contained         contained of the interactive sessions (ruling 5)
    contained_of_all  contained of all sessions
    dropped           interactive sessions closed by silence with the user's message unanswered: drop-offs
    readings          containment as four other systems count it
    by_outcome        sessions by outcome
    by_reason         sessions by reason of the close
    by_trade          sessions by trade
    """

    sessions: int
    not_counted: int
    interactive: int
    billing_sessions: int
    interactions: int
    active_ms: int
    contained: Ratio
    contained_of_all: Ratio
    dropped: int
    readings: Readings
    by_outcome: dict[str, int]
    by_reason: dict[str, int]
    by_trade: dict[str, int]


async def summarise(conn: AsyncConnection, wanted: SessionFilter) -> SessionSummary:
    """The summary of these sessions. One pass groups them by all that shows them apart; the groups are added up here."""
    rows = (await conn.execute(select(*_GROUPS, *_SUMS).where(*conditions(wanted)).group_by(*_GROUPS))).all()
    counted = [row for row in rows if row.counted]
    interactive = [row for row in counted if row.interactive]
    return SessionSummary(
        sessions=_sum(counted),
        not_counted=_sum(rows) - _sum(counted),
        interactive=_sum(interactive),
        billing_sessions=_sum(counted, "billing_sessions"),
        interactions=_sum(counted, "interactions"),
        active_ms=_sum(counted, "active_ms"),
        contained=_ratio(interactive, _is_contained),
        contained_of_all=_ratio(counted, _is_contained),
        dropped=_sum([row for row in interactive if row.outcome == "dropped"]),
        readings=Readings(
            kore=_ratio(interactive, _is_not_handed_off),
            botanalytics=_ratio(counted, lambda row: row.trade == "bot"),
            reamaze=_ratio(counted, lambda row: row.outcome != "escalated"),
            aivo=_ratio(counted, _is_not_handed_off),
        ),
        by_outcome=_by(counted, sessions.c.outcome),
        by_reason=_by(counted, sessions.c.reason),
        by_trade=_by(counted, sessions.c.trade),
    )


def _is_contained(row: Row[Any]) -> bool:
    return bool(row.contained)


def _is_not_handed_off(row: Row[Any]) -> bool:
    return bool(row.outcome != "handed_off" and row.trade == "bot")


def _ratio(rows: Sequence[Row[Any]], belongs: Callable[[Row[Any]], bool]) -> Ratio:
    return Ratio(_sum([row for row in rows if belongs(row)]), _sum(rows))


def _sum(rows: Sequence[Row[Any]], name: str = "sessions") -> int:
    return sum(int(getattr(row, name)) for row in rows)


def _by(rows: Sequence[Row[Any]], column: Column[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        value = getattr(row, column.name)
        found[value] = found.get(value, 0) + int(row.sessions)
    return found
