"""Writes closed sessions with their messages, many at a time, and never one twice.

The sessions of a batch go by COPY into a staging table of the connection's own and from there to those that are not there yet;
then the messages of the new ones go by COPY to their place, in portions: no statement grows with the length of a session, since
each must end before its time is up. A session that is there already is left as it is, and its messages with it. Characters that
Postgres cannot hold (NUL) become U+FFFD here, so that nothing a user typed can stop the archive.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.partitions import ensure_months, month_of
from app.archive.rows import MESSAGE_COLUMNS, SESSION_COLUMNS, ClosedSession, message_rows, session_row
from app.archive.tables import instant
from app.domain.records import Message, Session

_A_PORTION = 10_000  # messages
_KEY = ("id", "opened_at")

# DELETE ROWS: a connection keeps its staging table, empty, from one batch to the next.
_STAGING = text("CREATE TEMP TABLE IF NOT EXISTS staged_sessions (LIKE sessions INCLUDING DEFAULTS) ON COMMIT DELETE ROWS")
_MERGE = text("INSERT INTO sessions SELECT * FROM staged_sessions ON CONFLICT DO NOTHING RETURNING id")
# Sessions that this transaction inserted are staged, too: the count of late entries says which row is newer. The conditions
# beside the join let Postgres leave out partitions.
_UPDATE = text(f"""
    UPDATE sessions SET {", ".join(f"{name} = staged.{name}" for name in SESSION_COLUMNS if name not in _KEY)}
    FROM staged_sessions staged
    WHERE sessions.id = ANY(:ids) AND sessions.opened_at = ANY(:opened)
      AND sessions.id = staged.id AND sessions.opened_at = staged.opened_at AND staged.late_entries > sessions.late_entries
""")  # noqa: S608 - names of columns
# A continuation's messages count as held by the session that it continues: after a second rollback they are offered once more.
# It has the same user and is younger, so that it is found by the index.
_MESSAGE_IDS = text("""
    WITH held AS (
        SELECT id AS session_id, id, opened_at FROM sessions WHERE id = ANY(:ids) AND opened_at = ANY(:opened)
        UNION ALL
        SELECT continuation_of, id, opened_at FROM sessions
        WHERE continuation_of = ANY(:ids) AND user_id = ANY(:users) AND opened_at >= :since
    )
    SELECT held.session_id, array_agg(m.message_id) FROM held
    JOIN messages m ON m.session_id = held.id AND m.opened_at = held.opened_at GROUP BY held.session_id
""")


async def insert_closed(conn: AsyncConnection, batch: Sequence[ClosedSession]) -> set[str]:
    """Write a batch within the caller's transaction; returns the ids of the sessions that were not there before."""
    if not batch:
        return set()
    await ensure_months(conn, {month_of(closed.session.opened_at_ms) for closed in batch})
    await _stage(conn, batch)
    inserted = {str(session) for session in await conn.scalars(_MERGE)}
    new = {closed.session.id: closed for closed in batch if closed.session.id in inserted}  # a batch may hold one twice
    rows = _rows_of(new.values())
    while portion := list(islice(rows, _A_PORTION)):
        await _copy(conn, "messages", MESSAGE_COLUMNS, portion)
    return inserted


async def add_messages(conn: AsyncConnection, session: Session, portion: Sequence[Message]) -> None:
    """Add messages to a session that was inserted without them in this transaction."""
    await _copy(conn, "messages", MESSAGE_COLUMNS, message_rows(session, portion))


async def update_closed(conn: AsyncConnection, batch: Sequence[ClosedSession]) -> None:
    """Write these sessions over those of the archive, which this transaction has locked."""
    await _stage(conn, batch)
    opened = [instant(closed.session.opened_at_ms) for closed in batch]
    await conn.execute(_UPDATE, {"ids": [closed.session.id for closed in batch], "opened": opened})


async def existing_message_ids(conn: AsyncConnection, batch: Collection[Session]) -> dict[str, set[str]]:
    """Of each of these sessions that the archive holds, the ids of the messages it holds, in its continuations too."""
    opened = [instant(session.opened_at_ms) for session in batch]
    users = list({session.user_id for session in batch})
    values = {"ids": [session.id for session in batch], "opened": opened, "users": users, "since": min(opened, default=None)}
    found = await conn.execute(_MESSAGE_IDS, values)
    return {str(session): set(ids) for session, ids in found}


async def _stage(conn: AsyncConnection, batch: Sequence[ClosedSession]) -> None:
    await conn.execute(_STAGING)
    await _copy(conn, "staged_sessions", SESSION_COLUMNS, map(session_row, batch))


async def _copy(conn: AsyncConnection, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    raw = await conn.get_raw_connection()
    driver = raw.driver_connection
    if driver is None:
        msg = "the connection was closed"
        raise ConnectionError(msg)
    await driver.copy_records_to_table(table, records=rows, columns=columns)


def _rows_of(batch: Iterable[ClosedSession]) -> Iterator[tuple[Any, ...]]:
    """The rows of all their messages."""
    for closed in batch:
        yield from message_rows(closed.session, closed.messages)
