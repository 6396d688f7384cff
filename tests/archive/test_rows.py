"""Each column of an archived session and of a message holds the value of its own name, in whatever order columns are."""

from collections.abc import Iterator
from datetime import datetime
from itertools import count
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from msgspec import Struct, json, structs
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import session_reads
from app.archive.sessions import ClosedSession, insert_closed, message_of_view
from app.archive.tables import messages, sessions
from app.domain.instants import ms_of, rfc3339
from app.domain.records import Answer, Message, Session
from app.domain.session_view import message_view, session_view
from app.domain.strand import Strand, session_id
from app.failures import BadData
from tests.closed import NOVEMBER_MS

CONTINUED = "01a00000-0000-7000-8000-000000000001"
# Columns that the API shows under another name.
RENAMED = {
    "bot_id": ("bot",),
    "user_entries": ("entries_of", "user"),
    "bot_entries": ("entries_of", "bot"),
    "agent_entries": ("entries_of", "agent"),
    "system_entries": ("entries_of", "system"),
}
FLAGS = [name for name, kind in get_type_hints(Session).items() if kind in {bool, bool | None}]


def different_values(record: type[Struct], numbers: Iterator[int], *, flag: str = "") -> dict[str, Any]:
    """A value for each field of a record, no two alike; of the flags, which have but two values, only `flag` is true."""
    return {name: _value(name, kind, next(numbers), flag=flag) for name, kind in get_type_hints(record).items()}


def _value(name: str, kind: Any, number: int, *, flag: str) -> Any:  # noqa: ANN401 - by the type of a field
    options = [option for option in get_args(kind) if option not in {NoneType, Ellipsis}]
    if get_origin(kind) in {Union, UnionType}:
        return _value(name, options[0], number, flag=flag)
    if get_origin(kind) is Literal:
        return options[number % len(options)]
    if get_origin(kind) is tuple:
        return tuple(_value(name, options[0], 1000 * number + at, flag=flag) for at in range(2))
    if get_origin(kind) is dict:
        return {f"{name}-{number}": number}
    plain = {bool: name == flag, int: NOVEMBER_MS + 1000 * number if name.endswith("_at_ms") else number}
    return plain.get(kind, f"{name}-{number}")


def closed_session(*, flag: str) -> ClosedSession:
    """A session and a message of which no two values are alike."""
    numbers = count(8)
    strand = Strand("bot-1", "conversation-2", "thread-3")
    values = different_values(Session, numbers, flag=flag)
    made = session_id(strand, generation=1, opened_at_ms=values["opened_at_ms"])
    message = different_values(Message, numbers, flag=flag) | {"answer": Answer(made, "continued", 5, None, NOVEMBER_MS)}
    return ClosedSession(strand, Session(**(values | {"id": made})), [Message(**message)], continuation_of=CONTINUED)


async def stored(engine: AsyncEngine, closed: ClosedSession) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of the session and of its message, by column."""
    async with engine.begin() as conn:
        await insert_closed(conn, [closed])
        session = (await conn.execute(select(sessions))).one()
        message = (await conn.execute(select(messages))).one()
    return dict(session._mapping), dict(message._mapping)


def shown(value: object) -> object:
    return rfc3339(ms_of(value)) if isinstance(value, datetime) else value


def at(view: dict[str, Any], column: str) -> object:
    """The view's value for a column."""
    found: Any = view
    for name in RENAMED.get(column, (column,)):
        found = found[name]
    return found


@pytest.mark.parametrize("flag", FLAGS)
async def test_each_column_of_a_session_holds_what_the_api_shows_of_it(engine: AsyncEngine, flag: str) -> None:
    """All values differ, so two columns with each other's values do not pass; the rest of the record stands in `detail`."""
    closed = closed_session(flag=flag)
    row, _ = await stored(engine, closed)
    async with engine.connect() as conn:
        read = await session_reads.find(conn, closed.session.id)

    view = session_view(closed.strand, closed.session) | {"continuation_of": CONTINUED}
    columns = row.keys() - {"archived_at", "detail"}
    assert {column: shown(row[column]) for column in columns} == {column: at(view, column) for column in columns}
    assert read is not None
    assert (read.strand, read.session, read.continuation_of) == (closed.strand, closed.session, CONTINUED)


async def test_each_column_of_a_message_holds_what_the_api_shows_of_it(engine: AsyncEngine) -> None:
    """As of a session; and the message that is read back is the one that was written."""
    closed = closed_session(flag="")
    (message,) = closed.messages
    _, row = await stored(engine, closed)
    async with engine.connect() as conn:
        (read,) = await session_reads.messages_of(conn, closed.session.id, after=0, limit=10)

    view = message_view(message) | {
        "session_id": closed.session.id,
        "opened_at": rfc3339(closed.session.opened_at_ms),
        "rest": message.rest,
        "session_language": closed.session.language,
    }
    assert {column: shown(value) for column, value in row.items()} == {column: view[column] for column in row}
    names = [name for name in message.__struct_fields__ if name != "answer"]
    assert [getattr(read, name) for name in names] == [getattr(message, name) for name in names]


@pytest.mark.parametrize("change", ({"session": {"policy_version": 2**40}}, {"continuation_of": "no UUID"}))
async def test_value_that_its_column_cannot_hold_is_bad_data(engine: AsyncEngine, change: dict[str, Any]) -> None:
    """As if Postgres had refused it: the archivist rejects the record alone, and the others stay."""
    closed = closed_session(flag="")
    session = structs.replace(closed.session, **change.pop("session", {}))
    with pytest.raises(BadData):
        await stored(engine, structs.replace(closed, session=session, **change))


async def test_late_message_is_the_one_that_its_event_shows() -> None:
    """The event carries the message as JSON: nothing of it is lost on the way to the archive."""
    (message,) = closed_session(flag="").messages
    message = structs.replace(message, late=True)
    read = message_of_view(json.decode(json.encode(message_view(message))), "session")

    assert structs.replace(read, answer=message.answer) == message


async def test_values_of_the_test_are_all_different() -> None:
    """Else two swapped columns could pass for one another."""
    closed = closed_session(flag=FLAGS[0])
    values = [
        repr(value)
        for record in (closed.session, closed.messages[0])
        for name in record.__struct_fields__
        if not isinstance(value := getattr(record, name), bool | Answer)
    ]

    assert len(values) == len(set(values))
