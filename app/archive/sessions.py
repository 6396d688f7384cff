"""Writes closed sessions with their messages, many at a time, and never one twice; and the value of each column of their rows.

The sessions of a batch go by COPY into a staging table of the connection's own and from there to those that are not there yet;
then the messages of the new ones go by COPY to their place, in portions: no statement grows with the length of a session, since
each must end before its time is up. A session that is there already is left as it is, and its messages with it.

A column takes the field or property of its name from the record; an instant takes the field of that name in ms. The few other
columns are named here. A column that has no value by either way stops the import, so a new one cannot be forgotten. Characters
that Postgres cannot hold (NUL) become U+FFFD, so that no text of a user can stop the archive.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Column, Row, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.partitions import ensure_months, month_of
from app.archive.tables import instant, instant_or_none, messages, sessions
from app.domain.instants import ms_of
from app.domain.records import Answer, Message, Session
from app.domain.session_view import message_view
from app.domain.strand import Strand

NUL = "\x00"
REPLACEMENT = "\ufffd"
_ESCAPED_NUL = "\\u0000"

_VIEWED = message_view(Message(0, "", 0, "user", "message", None, Answer(None, "none", 0, None, 0))).keys()

Value = Callable[[Any], Any]
"""Computes a column's value from a record."""


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


def clean(text: str | None) -> str | None:
    """The text without NUL."""
    return text.replace(NUL, REPLACEMENT) if text is not None and NUL in text else text


def to_json(value: object) -> str:
    """A value as the JSON text of a `jsonb` column, without NUL."""
    encoded = _encode(value).decode()
    # The escape may be part of a text (`\\u0000` after a backslash), so only its presence costs a look at every value.
    return encoded if _ESCAPED_NUL not in encoded else _encode(_without_nul(msgspec.to_builtins(value))).decode()


def json_value(value: object) -> object:
    """A value as a `jsonb` column takes it from SQLAlchemy, without NUL."""
    return _without_nul(msgspec.to_builtins(value))


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


def session_row(closed: ClosedSession) -> tuple[Any, ...]:
    """Its values, in the order of `SESSION_COLUMNS`."""
    return tuple([value(closed) for value in _SESSION_VALUES])


def message_rows(session: Session, portion: Sequence[Message]) -> list[tuple[Any, ...]]:
    """The values of a session's messages, in the order of `MESSAGE_COLUMNS`."""
    of_session = session.id, instant(session.opened_at_ms), clean(session.language)
    return [(*of_session, *[value(message) for value in _MESSAGE_VALUES]) for message in portion]


def _values(table: Table, record: type[Struct], *, besides: dict[str, Value], on: str = "") -> dict[str, Value]:
    """Column name to what computes its value; `on` is the attribute that holds the record."""
    prefix = f"{on}." if on else ""
    return {
        column.name: besides.get(column.name) or _field_value(column, record, prefix=prefix)
        for column in table.c
        if column.name != "archived_at"
    }


def _field_value(column: Column[Any], record: type[Struct], *, prefix: str) -> Value:
    is_instant = isinstance(column.type, TIMESTAMP)
    field = f"{column.name}_ms" if is_instant else column.name
    if not hasattr(record, field):
        msg = f"column {column} is no field of {record.__name__}: give it a value in app/archive/sessions.py"
        raise TypeError(msg)
    get = attrgetter(prefix + field)
    if is_instant:
        return lambda item: instant_or_none(get(item))
    if isinstance(column.type, Text):
        return lambda item: clean(get(item))
    if isinstance(column.type, ARRAY):
        return lambda item: [clean(element) for element in get(item)]
    if isinstance(column.type, JSONB):
        return lambda item: None if (value := get(item)) is None else to_json(value)
    return get


def _without_nul(value: object) -> object:
    if isinstance(value, str):
        return value.replace(NUL, REPLACEMENT)
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value


_encode = msgspec.json.Encoder().encode

_session_values = _values(
    sessions,
    Session,
    on="session",
    besides={
        "bot_id": attrgetter("strand.bot"),
        "conversation_id": attrgetter("strand.conversation"),
        "thread": attrgetter("strand.thread"),
        "closing_rule": lambda closed: closed.session.closing_rule or "",
        "continuation_of": attrgetter("continuation_of"),
        "detail": lambda closed: to_json(closed.session),
    },
)
SESSION_COLUMNS = tuple(_session_values)
_SESSION_VALUES = tuple(_session_values.values())

# These columns are the same for all messages of a session.
_OF_SESSION: dict[str, Value] = {
    "session_id": attrgetter("id"),
    "opened_at": attrgetter("opened_at_ms"),
    "session_language": attrgetter("language"),
}
_message_values = _values(messages, Message, besides=_OF_SESSION)
MESSAGE_COLUMNS = (*_OF_SESSION, *(name for name in _message_values if name not in _OF_SESSION))
_MESSAGE_VALUES = tuple(_message_values[name] for name in MESSAGE_COLUMNS[len(_OF_SESSION) :])


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
