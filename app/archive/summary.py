"""Adds up closed sessions: number, billing, outcomes. Only sessions that count are added; the others stand apart."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, Row, Select, func, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import rollup
from app.archive.analytics_metrics import METRICS, OUTCOME_DIMENSIONS
from app.archive.rollup import BY_OUTCOME
from app.archive.session_reads import SessionFilter, conditions
from app.archive.tables import sessions
from app.domain.comparison import Ratio

_SUMS = {
    name: sql
    for metric in ("sessions", "counted", "billing_sessions", "interactions", "active_ms")
    for name, sql in METRICS[metric].sums.items()
}


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


async def summarise(engine: AsyncEngine, wanted: SessionFilter) -> SessionSummary:
    """The summary of these sessions, from the roll-up where it knows their filter.

    They are grouped by all that shows them apart; the groups are added up here.
    """
    async with engine.connect() as plain:
        # One snapshot: an hour that is not stale in one statement is as it was in the next.
        conn = await plain.execution_options(isolation_level="REPEATABLE READ")
        rows = (await conn.execute(await _groups(conn, wanted))).all()
    interactive = [row for row in rows if row.interactive]
    return SessionSummary(
        sessions=_sum(rows),
        not_counted=_sum(rows, "sessions") - _sum(rows),
        interactive=_sum(interactive),
        billing_sessions=_sum(rows, "billing_sessions"),
        interactions=_sum(rows, "interactions"),
        active_ms=_sum(rows, "active_ms_sum"),
        contained=_ratio(interactive, _is_contained),
        contained_of_all=_ratio(rows, _is_contained),
        dropped=_sum([row for row in interactive if row.outcome == "dropped"]),
        readings=Readings(
            kore=_ratio(interactive, _is_not_handed_off),
            botanalytics=_ratio(rows, lambda row: row.trade == "bot"),
            reamaze=_ratio(rows, lambda row: row.outcome != "escalated"),
            aivo=_ratio(rows, _is_not_handed_off),
        ),
        by_outcome=_by(rows, sessions.c.outcome),
        by_reason=_by(rows, sessions.c.reason),
        by_trade=_by(rows, sessions.c.trade),
    )


async def _groups(conn: AsyncConnection, wanted: SessionFilter) -> Select[Any]:
    """The groups of these sessions, with their sums."""
    hours = await rollup.source(conn, BY_OUTCOME, wanted) if BY_OUTCOME.knows(wanted.given, set()) else None
    rows = select(sessions).where(*conditions(wanted)).subquery("s") if hours is None else hours.rows
    group = [rows.c[name] for name in OUTCOME_DIMENSIONS]
    sums = ((literal_column(sql) if hours is None else func.sum(rows.c[name])).label(name) for name, sql in _SUMS.items())
    return select(*group, *sums).group_by(*group)


def _is_contained(row: Row[Any]) -> bool:
    return bool(row.contained)


def _is_not_handed_off(row: Row[Any]) -> bool:
    return bool(row.outcome != "handed_off" and row.trade == "bot")


def _ratio(rows: Sequence[Row[Any]], belongs: Callable[[Row[Any]], bool]) -> Ratio:
    return Ratio(_sum([row for row in rows if belongs(row)]), _sum(rows))


def _sum(rows: Sequence[Row[Any]], name: str = "counted") -> int:
    return sum(int(getattr(row, name)) for row in rows)


def _by(rows: Sequence[Row[Any]], column: Column[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        value = getattr(row, column.name)
        found[value] = found.get(value, 0) + int(row.counted)
    return {value: count for value, count in found.items() if count}
