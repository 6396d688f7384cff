"""Deletes what is older than a bot's `retention_days` say: sessions, messages and deliveries apart; null keeps.

    months of which nothing is kept ──> dropped whole        the rest ──> deleted by bot, in portions

Age counts from the close of a session, for sandbox bots from its row in the archive. Messages and deliveries of a session go with
it at the latest. One worker at a time does a portion, each in a transaction of its own, so a crash leaves the rest for the next
run. It refuses to delete pending deliveries, and what waits for an admin (rejects).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Row, Select, case, delete, exists, func, null, or_, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import partitions, rollup
from app.archive.engine import Lock, take_lock, try_lock
from app.archive.partitions import Partition
from app.archive.session_reads import LONGEST_SESSION_MS
from app.archive.tables import bots, deliveries, instant, messages, sessions, unassigned_entries
from app.metrics import RETENTION_DELETED, RETENTION_DROPPED

SHORTEST_DAYS = 2
"""A late entry comes up to 24 hours after the close, and finds its session."""

_PORTION = 200
# From the opening of a session to its row in the archive at most: a long session, and a week without Postgres.
_LATEST_ARRIVAL = timedelta(milliseconds=LONGEST_SESSION_MS) + timedelta(days=7)
_LOCK_NOT_AVAILABLE = "55P03"

Portion = Callable[[AsyncConnection, "Cutoffs"], Awaitable[Mapping[str, int]]]


class Cutoffs(Struct, frozen=True):
    """The instants before which a bot's data is deleted; None: it is kept."""

    bot: str
    sandbox: bool
    sessions: datetime | None
    messages: datetime | None
    deliveries: datetime | None


class Retention:
    """The worker's job."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._cleared: dict[str, datetime] = {}  # bot to the instant before which its messages are known to be deleted

    async def run_once(self, now_ms: int) -> Mapping[str, int]:
        """Delete what is too old now; returns how many rows of each table, without those of months that were dropped."""
        async with self._engine.connect() as conn:
            limited = await cutoffs(conn, now_ms)
        if not limited:
            return {}
        await self._drop_months(now_ms)
        async with self._engine.connect() as conn:
            months = [each for each in await partitions.listed(conn) if each.table == messages.name]
        deleted: dict[str, int] = {}
        for each in limited:
            for portion in (_sessions, _deliveries, _unassigned):
                await self._repeat(portion, each, deleted)
            await self._delete_messages(each, months, deleted)
        return deleted

    async def _delete_messages(self, limits: Cutoffs, months: Sequence[Partition], deleted: dict[str, int]) -> None:
        """By month, so that no statement takes long; months that an earlier run of this process has cleared are left out."""
        if limits.messages is None:
            return
        cleared = self._cleared.get(limits.bot)
        wanted = [
            month
            for month in months
            if limits.sandbox or (month.start < limits.messages and (cleared is None or month.end > cleared - _LATEST_ARRIVAL))
        ]
        done = [await self._repeat(partial(_messages, month=month), limits, deleted) for month in wanted]
        if all(done):
            self._cleared[limits.bot] = limits.messages

    async def _repeat(self, portion: Portion, limits: Cutoffs, deleted: dict[str, int]) -> bool:
        """Do portions until nothing is left; False if another worker has the lock."""
        while True:
            async with self._engine.begin() as conn:
                if not await try_lock(conn, Lock.RETENTION):
                    return False
                done = await portion(conn, limits)
            counts = {table: count for table, count in done.items() if count}
            for table, count in counts.items():
                deleted[table] = deleted.get(table, 0) + count
                RETENTION_DELETED.labels(table).inc(count)
            if not counts:
                return True

    async def _drop_months(self, now_ms: int) -> None:
        async with self._engine.connect() as conn:
            found = await partitions.listed(conn)
            old = [each for each in found if each.end <= instant(now_ms) - timedelta(days=SHORTEST_DAYS)]
            unkept = [each for each in old if not await _is_kept(conn, each, now_ms)]
        for each in unkept:
            if await self._drop(each, now_ms):
                RETENTION_DROPPED.inc()

    async def _drop(self, partition: Partition, now_ms: int) -> bool:
        """Drop a partition of which nothing is kept; False if that has changed, or if others use it just now."""
        try:
            async with self._engine.begin() as conn:
                await conn.execute(text("SET LOCAL lock_timeout = '2s'"))
                if not await try_lock(conn, Lock.RETENTION):
                    return False
                # The archivist holds it shared from before it looks for partitions until its rows are committed.
                await take_lock(conn, Lock.ERASURE)
                if await _is_kept(conn, partition, now_ms):
                    return False
                if partition.table == sessions.name:
                    await rollup.note_all(conn, partition.start, partition.end)
                await conn.execute(text(f"DROP TABLE {partition.name}"))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            return False
        return True


async def cutoffs(conn: AsyncConnection, now_ms: int) -> list[Cutoffs]:
    """The cutoffs of the bots that have any, deleted bots included."""
    limits = (_cutoff(now_ms, kind).label(kind) for kind in ("sessions", "messages", "deliveries"))
    wanted = select(bots.c.id, bots.c.sandbox, *limits).order_by(bots.c.id)
    found = [Cutoffs(*row) for row in await conn.execute(wanted)]
    return [each for each in found if each.sessions or each.messages or each.deliveries]


def _cutoff(now_ms: int, kind: str) -> ColumnElement[Any]:
    """The instant before which a bot's data of this kind is deleted: nothing outlives its session."""
    days = func.least(bots.c.retention_days[kind].as_integer(), bots.c.retention_days["sessions"].as_integer())
    return instant(now_ms) - func.make_interval(0, 0, 0, days)


async def _is_kept(conn: AsyncConnection, partition: Partition, now_ms: int) -> bool:
    """Whether something of a partition is kept."""
    limit = _cutoff(now_ms, partition.table)
    of_month = (sessions.c.opened_at >= partition.start) & (sessions.c.opened_at < partition.end)
    since = case((bots.c.sandbox, sessions.c.archived_at), else_=sessions.c.closed_at)
    kept = or_(bots.c.id.is_(None), limit.is_(null()), since >= limit)
    joined = sessions.outerjoin(bots, bots.c.id == sessions.c.bot_id)
    return bool(await conn.scalar(select(exists(select(sessions.c.id).select_from(joined).where(of_month, kept)))))


async def _sessions(conn: AsyncConnection, limits: Cutoffs) -> Mapping[str, int]:
    if limits.sessions is None:
        return {}
    rows = await _lock_sessions(conn, limits, limits.sessions)
    if not rows:
        return {}
    said = await _delete_messages(conn, rows)
    removed = await conn.execute(delete(sessions).where(sessions.c.id.in_(_ids(rows)), sessions.c.opened_at.in_(_opened(rows))))
    return {"sessions": removed.rowcount, "messages": said}


async def _messages(conn: AsyncConnection, limits: Cutoffs, *, month: Partition) -> Mapping[str, int]:
    of_month = (sessions.c.opened_at >= month.start) & (sessions.c.opened_at < month.end)
    if limits.messages is None:
        return {}
    has_some = exists().where(messages.c.session_id == sessions.c.id, messages.c.opened_at == sessions.c.opened_at)
    rows = await _lock_sessions(conn, limits, limits.messages, of_month, has_some)
    return {"messages": await _delete_messages(conn, rows)} if rows else {}


async def _deliveries(conn: AsyncConnection, limits: Cutoffs) -> Mapping[str, int]:
    if limits.deliveries is None:
        return {}
    listed = deliveries.c
    old = select(listed.id).where(listed.bot_id == limits.bot, listed.created_at < limits.deliveries, listed.status != "pending")
    picked = old.limit(_PORTION).with_for_update(skip_locked=True)
    return {"deliveries": (await conn.execute(delete(deliveries).where(listed.id.in_(picked)))).rowcount}


async def _unassigned(conn: AsyncConnection, limits: Cutoffs) -> Mapping[str, int]:
    """Entries without a session are messages; of a sandbox bot the latest 1,000 stay, since their instants say nothing."""
    if limits.messages is None or limits.sandbox:
        return {}
    entries = unassigned_entries.c
    old = delete(unassigned_entries).where(entries.bot_id == limits.bot, entries.received_at < limits.messages)
    return {"unassigned_entries": (await conn.execute(old)).rowcount}


async def _lock_sessions(
    conn: AsyncConnection, limits: Cutoffs, before: datetime, *conditions: ColumnElement[bool]
) -> list[Row[Any]]:
    since = sessions.c.archived_at if limits.sandbox else sessions.c.closed_at
    old = (sessions.c.bot_id == limits.bot) & (since < before)
    wanted: Select[Any] = select(sessions.c.id, sessions.c.opened_at).where(old, *conditions).limit(_PORTION)
    return list((await conn.execute(wanted.with_for_update(skip_locked=True))).all())


async def _delete_messages(conn: AsyncConnection, rows: list[Row[Any]]) -> int:
    of_sessions = messages.c.session_id.in_(_ids(rows)) & messages.c.opened_at.in_(_opened(rows))
    return (await conn.execute(delete(messages).where(of_sessions))).rowcount


def _ids(rows: list[Row[Any]]) -> list[str]:
    return [row.id for row in rows]


def _opened(rows: list[Row[Any]]) -> list[datetime]:
    return sorted({row.opened_at for row in rows})
