"""Writes closed sessions with their messages, many at a time, and never one twice; and the value of each column of their rows.

The sessions of a batch go by COPY straight into their partitions. If one of them is there already, as in a repeated batch, that
is undone: they go by COPY into a staging table of the connection's own, and from there to those that are not there yet. Then
the messages of the new ones go by COPY to their place, in portions: no statement grows with the length of a session, since each
must end before its time is up. A session that is there already is left as it is, and its messages with it.

`app.archive.copy_rows` encodes the rows; the columns that are no field of the record are named here.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import copy_rows
from app.archive.copy_rows import RowEncoder, columns_of
from app.archive.partitions import Month, ensure_months, month_of
from app.archive.tables import instant, messages, sessions
from app.domain.instants import HOUR_MS, ms_of
from app.domain.records import Answer, Message, Session
from app.domain.session_view import message_view
from app.domain.strand import Strand

_VIEWED = message_view(Message(0, "", 0, "user", "message", None, Answer(None, "none", 0, None, 0))).keys()


class ClosedSession(Struct, frozen=True):
    """A session that is over, as the archive takes it.

    strand           where it was: bot, conversation, thread
    session          the record, closed
    messages         its messages, in no particular order; empty where they are written apart, in portions
    continuation_of  the archived session whose messages these are, collected after a rollback of Redis
    """

    strand: Strand
    session: Session
    messages: Sequence[Message]
    continuation_of: str | None = None


def json_value(value: object) -> object:
    """A value as a `jsonb` column takes it from SQLAlchemy, without NUL."""
    return copy_rows.without_nul(msgspec.to_builtins(value))


def message_of(row: Row[Any]) -> Message:
    """The message that a row holds. The answer that the bot got is not archived: its entry can no longer be repeated."""
    received_at_ms = ms_of(row.received_at)
    return Message(
        sequence=row.sequence,
        message_id=row.message_id,
        received_at_ms=received_at_ms,
        role=row.role,
        type=row.type,
        text=row.text,
        answer=Answer(row.session_id, "continued", row.sequence, None, received_at_ms),
        user_id=row.user_id,
        intent=row.intent,
        language=row.language,
        tags=tuple(row.tags),
        sent_at_ms=None if row.sent_at is None else ms_of(row.sent_at),
        rest=row.rest,
        late=row.late,
    )


def message_of_view(view: dict[str, Any], session_id: str) -> Message:
    """The late message of a closed session, from its view in the event `session.updated`."""
    received_at_ms = ms_of(datetime.fromisoformat(view["received_at"]))
    sent_at = view["sent_at"]
    return Message(
        sequence=view["sequence"],
        message_id=view["message_id"],
        received_at_ms=received_at_ms,
        role=view["role"],
        type=view["type"],
        text=view["text"],
        answer=Answer(session_id, "late", view["sequence"], None, received_at_ms),
        user_id=view["user_id"],
        intent=view["intent"],
        language=view["language"],
        tags=tuple(view["tags"]),
        sent_at_ms=None if sent_at is None else ms_of(datetime.fromisoformat(sent_at)),
        rest={name: value for name, value in view.items() if name not in _VIEWED} or None,
        late=view["late"],
    )


_SESSION = RowEncoder(
    columns_of(
        (column for column in sessions.c if column.name != "archived_at"),
        Session,
        on="session",
        besides={
            "bot_id": ("strand.bot", copy_rows.cached_text),
            "conversation_id": ("strand.conversation", copy_rows.text),
            "user_id": ("session.user_id", copy_rows.text),
            "thread": ("strand.thread", copy_rows.cached_text),
            "closed_by": ("session.closed_by", copy_rows.text),
            "closing_rule": ("session.closing_rule", lambda rule: copy_rows.cached_text(rule or "")),
            "continuation_of": ("continuation_of", copy_rows.uuid),
            "detail": ("session", copy_rows.json),
        },
    )
)
SESSION_COLUMNS = _SESSION.columns

# These columns are the same for all messages of a session.
_OF_SESSION = RowEncoder(
    columns_of(
        (column for column in messages.c if column.name in {"session_id", "opened_at", "session_language"}),
        Session,
        besides={"session_id": ("id", copy_rows.uuid), "session_language": ("language", copy_rows.cached_text)},
    )
)
_MESSAGE = RowEncoder(
    columns_of(
        (column for column in messages.c if column.name not in _OF_SESSION.columns),
        Message,
        besides={"message_id": ("message_id", copy_rows.text), "text": ("text", copy_rows.text)},
    )
)
MESSAGE_COLUMNS = (*_OF_SESSION.columns, *_MESSAGE.columns)
_SESSION_START = copy_rows.number_of_columns(SESSION_COLUMNS)
_MESSAGE_START = copy_rows.number_of_columns(MESSAGE_COLUMNS)


def session_row(closed: ClosedSession) -> bytes:
    """Its row, of `SESSION_COLUMNS`. Raises `BadData`."""
    return _SESSION_START + _SESSION.row(closed)


def message_rows(session: Session, portion: Iterable[Message]) -> Iterator[bytes]:
    """The rows of a session's messages, of `MESSAGE_COLUMNS`. Raises `BadData`."""
    start = _MESSAGE_START + _OF_SESSION.row(session)
    return (start + _MESSAGE.row(message) for message in portion)


_A_PORTION = 10_000  # messages
_A_WRITE = 256  # rows that go out together
_KEY = ("id", "opened_at")

# DELETE ROWS: a connection keeps its staging table, empty, from one batch to the next.
_STAGING = text("CREATE TEMP TABLE IF NOT EXISTS staged_sessions (LIKE sessions INCLUDING DEFAULTS) ON COMMIT DELETE ROWS")
_MERGE = text("INSERT INTO sessions SELECT * FROM staged_sessions ON CONFLICT DO NOTHING RETURNING id")
# Nothing else does: the trigger that notes hours is on the whole table, and rows went into a partition by its name.
_NOTE_HOURS = text("""
    INSERT INTO stale_hours (bot_id, hour)
    SELECT DISTINCT bot, date_trunc('hour', at, 'UTC')
    FROM unnest(CAST(:bots AS text[]), CAST(:ats AS timestamptz[])) AS opened(bot, at)
""")
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
    by_month: dict[Month, list[ClosedSession]] = {}
    for closed in batch:
        by_month.setdefault(month_of(closed.session.opened_at_ms), []).append(closed)
    partitions = await ensure_months(conn, by_month)
    try:
        async with conn.begin_nested():
            for month, of_month in by_month.items():
                await _insert_new(conn, of_month, partitions[month])
        inserted = {closed.session.id for closed in batch}
    except asyncpg.UniqueViolationError:
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


async def _insert_new(conn: AsyncConnection, batch: Sequence[ClosedSession], partition: str) -> None:
    """Copy sessions that are not there yet into their partition by name: through a table with a trigger they go row by row."""
    await _copy(conn, partition, SESSION_COLUMNS, map(session_row, batch))
    hours = {(closed.strand.bot, closed.session.opened_at_ms // HOUR_MS): closed.session.opened_at_ms for closed in batch}
    await conn.execute(_NOTE_HOURS, {"bots": [bot for bot, _ in hours], "ats": list(map(instant, hours.values()))})


async def _stage(conn: AsyncConnection, batch: Sequence[ClosedSession]) -> None:
    await conn.execute(_STAGING)
    await _copy(conn, "staged_sessions", SESSION_COLUMNS, map(session_row, batch))


async def _copy(conn: AsyncConnection, table: str, columns: Sequence[str], rows: Iterable[bytes]) -> None:
    raw = await conn.get_raw_connection()
    driver = raw.driver_connection
    if driver is None:
        msg = "the connection was closed"
        raise ConnectionError(msg)
    await driver.copy_to_table(table, source=_written(rows), columns=columns, format="binary")


async def _written(rows: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Give some rows at a time: Postgres takes them while the next ones are made."""
    left = iter(rows)
    yield copy_rows.HEADER
    while some := list(islice(left, _A_WRITE)):
        yield b"".join(some)
    yield copy_rows.TRAILER


def _rows_of(batch: Iterable[ClosedSession]) -> Iterator[bytes]:
    """The rows of all their messages."""
    for closed in batch:
        yield from message_rows(closed.session, closed.messages)
