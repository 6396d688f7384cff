"""Rows of `sessions` and `messages`: which value stands in which column, by the column's name.

A column takes the field or property of its name from the record; an instant takes the field of that name in ms. The few other
columns are named here. A column that has no value by either way stops the import, so a new one cannot be forgotten.

Characters that Postgres cannot hold (NUL) become U+FFFD, so that no text of a user can stop the archive.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import Column, Row, Table, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

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
    of_session = session.id, instant(session.opened_at_ms)
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
        msg = f"column {column} is no field of {record.__name__}: give it a value in app/archive/rows.py"
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

# Two columns are the same for all messages of a session.
_OF_SESSION: dict[str, Value] = {"session_id": attrgetter("id"), "opened_at": attrgetter("opened_at_ms")}
_message_values = _values(messages, Message, besides=_OF_SESSION)
MESSAGE_COLUMNS = (*_OF_SESSION, *(name for name in _message_values if name not in _OF_SESSION))
_MESSAGE_VALUES = tuple(_message_values[name] for name in MESSAGE_COLUMNS[len(_OF_SESSION) :])
