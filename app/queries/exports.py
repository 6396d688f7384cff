"""Exports closed sessions or their messages as rows of CSV or NDJSON, the first opened first, in constant memory.

Each page is a short transaction of its own, so an export of hours holds nothing open. A row names its place: the session's id,
for messages also the sequence. An export that is cut goes on after the last whole row, with the same bytes as if it had not been
cut; sessions that are archived meanwhile and opened before that place are not in it. It refuses places that are none.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal, Protocol
from uuid import UUID

from msgspec import Struct, json
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import session_reads
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionPlace
from app.domain.errors import Fault
from app.domain.records import Answer, Message, Session
from app.domain.session_view import message_view, session_view
from app.domain.strand import Strand, opened_at_ms_of
from app.errors import Invalid

Format = Literal["csv", "ndjson"]
ExportKind = Literal["sessions", "messages"]
Row = dict[str, Any]

_SESSIONS_A_PAGE = 200
_MESSAGES_A_PAGE = 500
_REST = "rest"
_LARGEST_SEQUENCE = 2**31 - 1


class Place(Struct, frozen=True):
    """Where an export goes on: after this session or, for messages, after this message of it."""

    session_id: str
    sequence: int | None = None


class ExportPages(Protocol):
    """Gives the pages of one kind of export."""

    def __call__(self, engine: AsyncEngine, wanted: SessionFilter, *, after: Place | None) -> AsyncIterator[list[Row]]: ...


def place_of(text: str, *, kind: ExportKind) -> Place:
    """`<session id>` or, for messages, `<session id>:<sequence>`. Raises `Invalid` for anything else."""
    session, colon, sequence = text.partition(":")
    has_sequence = kind == "messages"
    try:
        place = Place(str(UUID(session)), int(sequence) if colon else None)
    except ValueError:
        place = None
    if place is None or bool(colon) != has_sequence or not 0 <= (place.sequence or 0) <= _LARGEST_SEQUENCE:
        form = "<session id>:<sequence> of the last message" if has_sequence else "the id of the last session"
        raise Invalid("the place is not valid", faults=(Fault("after", "it is no place of this export", form),))
    return place


async def encoded(
    engine: AsyncEngine, wanted: SessionFilter, *, kind: ExportKind, form: Format, after: Place | None
) -> AsyncIterator[bytes]:
    """The export in pieces: the rows after `after`, and the names of the columns only where it begins."""
    columns, rows = COLUMNS[kind], _ROWS[kind]
    if form == "csv" and after is None:
        yield (",".join(columns) + "\n").encode()
    async for page in rows(engine, wanted, after=after):
        yield as_csv(page, columns) if form == "csv" else as_ndjson(page)


async def session_rows(engine: AsyncEngine, wanted: SessionFilter, *, after: Place | None) -> AsyncIterator[list[Row]]:
    """Pages of sessions as rows."""
    async for page in session_pages(engine, wanted, after=None if after is None else _after(after)):
        yield [session_row(one) for one in page]


async def message_rows(engine: AsyncEngine, wanted: SessionFilter, *, after: Place | None) -> AsyncIterator[list[Row]]:
    """Pages of messages as rows: those of one session after the other."""
    # The session that was cut is read again, under the filter as any other.
    async for page in session_pages(engine, wanted, after=None if after is None else _before(after)):
        async for rows in messages_in(engine, page, after=after):
            yield rows


async def messages_in(
    engine: AsyncEngine, sessions: Sequence[ArchivedSession], *, after: Place | None = None
) -> AsyncIterator[list[Row]]:
    """Pages of the messages of these sessions as rows."""
    for portion in _portions(sessions):
        if len(portion) == 1:
            one = portion[0]
            sequence = after.sequence if after and after.session_id == one.session.id else 0
            async for rows in _rows_of(engine, one, sequence=sequence or 0):
                yield rows
            continue
        async with engine.connect() as conn:
            found = await session_reads.messages_of_all(conn, [one.session for one in portion])
        rows = [message_row(one, message) for one in portion for message in found[one.session.id]]
        yield rows if after is None else [row for row in rows if (row["session_id"], row["sequence"]) > _key(after)]


async def session_pages(
    engine: AsyncEngine, wanted: SessionFilter, *, after: SessionPlace | None = None
) -> AsyncIterator[list[ArchivedSession]]:
    """Pages of sessions, the first opened first."""
    while True:
        async with engine.connect() as conn:
            page = await session_reads.page(conn, wanted, order="opened_at", after=after, limit=_SESSIONS_A_PAGE)
        if page:
            yield page
        if len(page) < _SESSIONS_A_PAGE:
            return
        after = SessionPlace(page[-1].session.opened_at_ms, page[-1].session.id)


def _after(place: Place) -> SessionPlace:
    return SessionPlace(opened_at_ms_of(place.session_id), place.session_id)


def _before(place: Place) -> SessionPlace:
    """The place just before a session: ids are numbers."""
    return SessionPlace(opened_at_ms_of(place.session_id), str(UUID(int=max(UUID(place.session_id).int - 1, 0))))


def _portions(page: Sequence[ArchivedSession]) -> Iterator[list[ArchivedSession]]:
    """Sessions whose messages are read together; a long one alone."""
    portion: list[ArchivedSession] = []
    count = 0
    for one in page:
        entries = one.session.entries + one.session.late_entries
        if portion and count + entries > _MESSAGES_A_PAGE:
            yield portion
            portion, count = [], 0
        portion.append(one)
        count += entries
    if portion:
        yield portion


async def _rows_of(engine: AsyncEngine, one: ArchivedSession, *, sequence: int) -> AsyncIterator[list[Row]]:
    while True:
        async with engine.connect() as conn:
            found = await session_reads.messages_of(conn, one.session.id, after=sequence, limit=_MESSAGES_A_PAGE)
        if found:
            yield [message_row(one, message) for message in found]
        if len(found) < _MESSAGES_A_PAGE:
            return
        sequence = found[-1].sequence


def session_row(one: ArchivedSession) -> Row:
    return session_view(one.strand, one.session) | {"continuation_of": one.continuation_of}


def _key(place: Place) -> tuple[str, int]:
    return place.session_id, place.sequence or 0


def message_row(one: ArchivedSession, message: Message) -> Row:
    return {"session_id": one.session.id, "bot": one.strand.bot, **message_view(message)}


def _flat(row: Row) -> Iterator[tuple[str, Any]]:
    """`{"entries_of": {"user": 1}}` as `entries_of_user`; other objects and lists stay whole."""
    for name, value in row.items():
        if name.endswith("_of") and isinstance(value, dict):
            yield from ((f"{name}_{inner}", one) for inner, one in value.items())
        else:
            yield name, value


def _cell(value: object) -> object:
    if value is None:
        return ""
    return json.encode(value).decode() if isinstance(value, bool | list | dict) else value


_SESSION = Session("", "", "", 0)
_MESSAGE = Message(0, "", 0, "user", "message", None, Answer("", "continued", 0, None, 0))
_BLANK = ArchivedSession(Strand("", ""), _SESSION, None)

_ROWS: dict[ExportKind, ExportPages] = {"sessions": session_rows, "messages": message_rows}

COLUMNS: dict[ExportKind, tuple[str, ...]] = {
    "sessions": tuple(name for name, _ in _flat(session_row(_BLANK))),
    "messages": (*message_row(_BLANK, _MESSAGE), _REST),
}
"""The columns of CSV. `rest` of a message holds, as JSON, the fields that few messages have."""


def as_ndjson(rows: Sequence[Row]) -> bytes:
    """A JSON object a line."""
    return b"".join(json.encode(row) + b"\n" for row in rows)


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> bytes:
    """RFC 4180 but for the line ends: a line feed; booleans, lists and objects as JSON; nothing for null."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        flat = dict(_flat(row))
        rest = {name: flat.pop(name) for name in flat.keys() - set(columns)}
        flat[_REST] = rest or None
        writer.writerow([_cell(flat.get(name)) for name in columns])
    return text.getvalue().encode()
