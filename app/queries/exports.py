"""Exports closed sessions or their messages as rows of CSV, NDJSON or Parquet, the first opened first, in constant memory.

Each page is a short transaction of its own, so an export of hours holds nothing open. A row names its place: the session's id,
for messages also the sequence. An export that is cut goes on after the last whole row, with the same bytes as if it had not been
cut; sessions that are archived meanwhile and opened before that place are not in it. A Parquet file has its index at its end, so
what goes on after a place is a file of its own. It refuses places that are none, and Parquet where pyarrow is not installed.
"""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib import import_module
from types import NoneType
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints
from uuid import UUID

from msgspec import Struct, json
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import session_reads
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionPlace
from app.domain.errors import Fault
from app.domain.records import Answer, Message, Session
from app.domain.session_view import message_view, public_fields, session_view, shown_as
from app.domain.strand import Strand, opened_at_ms_of
from app.errors import Invalid

Format = Literal["csv", "ndjson", "parquet"]
ExportKind = Literal["sessions", "messages"]
Row = dict[str, Any]
Cell = Callable[[Any], object]
"""Writes a value as a cell of CSV."""

_SESSIONS_A_PAGE = 200
_MESSAGES_A_PAGE = 500
_GROUP_ROWS = 20_000
_GROUP_BYTES = 16_000_000
_REST = "rest"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four: full size
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
    engine: AsyncEngine, wanted: SessionFilter, *, kind: ExportKind, form: Format, after: Place | None, cell: Cell | None = None
) -> AsyncIterator[bytes]:
    """The export in pieces: the rows after `after`, and the names of the columns only where it begins; `cell` as for `as_csv`."""
    columns, rows = COLUMNS[kind], _ROWS[kind]
    pages = rows(engine, wanted, after=after)
    if form == "parquet":
        async for piece in as_parquet(pages, columns):
            yield piece
        return
    if form == "csv" and after is None:
        yield (",".join(columns) + "\n").encode()
    async for page in pages:
        yield as_csv(page, columns, cell=cell or _cell) if form == "csv" else as_ndjson(page)


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


def spreadsheet_cell(value: object) -> object:
    """A cell that no spreadsheet program reads as a formula: texts that begin as one do get an apostrophe before."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else _cell(value)


_SESSION = Session("", "", "", 0)
_MESSAGE = Message(0, "", 0, "user", "message", None, Answer("", "continued", 0, None, 0))
_BLANK = ArchivedSession(Strand("", ""), _SESSION, None)

_ROWS: dict[ExportKind, ExportPages] = {"sessions": session_rows, "messages": message_rows}

COLUMNS: dict[ExportKind, tuple[str, ...]] = {
    "sessions": tuple(name for name, _ in _flat(session_row(_BLANK))),
    "messages": (*message_row(_BLANK, _MESSAGE), _REST),
}
"""The columns of CSV and Parquet. `rest` of a message holds, as JSON, the fields that few messages have."""


def as_ndjson(rows: Sequence[Row]) -> bytes:
    """A JSON object a line."""
    return b"".join(json.encode(row) + b"\n" for row in rows)


def as_csv(rows: Sequence[Row], columns: Sequence[str], *, cell: Cell) -> bytes:
    """RFC 4180 but for the line ends: a line feed; `cell` writes one value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = _cells(row, columns)
        writer.writerow([cell(cells.get(name)) for name in columns])
    return text.getvalue().encode()


def _cells(row: Row, columns: Sequence[str]) -> Row:
    """Column to value; values without a column are those of `rest`."""
    flat = dict(_flat(row))
    rest = {name: flat.pop(name) for name in sorted(flat.keys() - set(columns))}
    return flat | {_REST: rest or None}


async def as_parquet(pages: AsyncIterator[list[Row]], columns: Sequence[str]) -> AsyncIterator[bytes]:
    """A Parquet file: instants, numbers, booleans and lists of texts by their types, other objects and lists as JSON."""
    file = await asyncio.to_thread(_ParquetFile, columns)
    yield file.written()
    async for page in pages:
        await asyncio.to_thread(file.add, page)
        if piece := file.written():
            yield piece
    await asyncio.to_thread(file.close)
    yield file.written()


class _Sink(io.RawIOBase):
    """Takes what is written, to be handed on, and knows the place in the whole file."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        return True

    def seek(self, _offset: int, _whence: int = 0, /) -> int:
        """The place: a writer that goes nowhere else asks for it so."""
        return self._place

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - a buffer, which Python 3.11 has no name for
        piece = bytes(data)
        self._pieces.append(piece)
        self._place += len(piece)
        return len(piece)

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


class _ParquetFile:
    """Writes a row group whenever there are rows enough for one. Raises `Invalid` where pyarrow is not installed."""

    def __init__(self, columns: Sequence[str]) -> None:
        try:
            self._arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        except ImportError:
            fault = Fault(
                "format", "this server cannot write Parquet", "csv or ndjson; or install adjourn[parquet] on the server"
            )
            raise Invalid("the format is not available", faults=(fault,)) from None
        self._columns = columns
        types = [self._type(name) for name in columns]
        self._schema = self._arrow.schema(list(zip(columns, types, strict=True)))
        self._sink = _Sink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._tables: list[Any] = []

    def add(self, rows: Sequence[Row]) -> None:
        cells = [_cells(row, self._columns) for row in rows]
        arrays = [self._array(name, [each.get(name) for each in cells]) for name in self._columns]
        self._tables.append(self._arrow.table(arrays, schema=self._schema))
        if sum(map(len, self._tables)) >= _GROUP_ROWS or sum(table.nbytes for table in self._tables) >= _GROUP_BYTES:
            self._write()

    def close(self) -> None:
        if self._tables:
            self._write()
        self._writer.close()

    def written(self) -> bytes:
        """The bytes since the last call."""
        return self._sink.take()

    def _write(self) -> None:
        table = self._arrow.concat_tables(self._tables).combine_chunks()
        self._writer.write_table(table, row_group_size=len(table))
        self._tables = []

    def _type(self, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
        arrow = self._arrow
        if _is_instant(name):
            return arrow.timestamp("ms", tz="UTC")
        types = {bool: arrow.bool_(), int: arrow.int64(), tuple: arrow.list_(arrow.string())}
        return types.get(_PLAIN.get(name, str), arrow.string())

    def _array(self, name: str, values: list[Any]) -> Any:  # noqa: ANN401 - as above
        wanted = self._schema.field(name).type
        if _is_instant(name):
            return self._arrow.array(values, self._arrow.string()).cast(wanted)
        if wanted == self._arrow.string():
            values = [json.encode(value).decode() if isinstance(value, dict | list) else value for value in values]
        return self._arrow.array(values, wanted)


def _is_instant(column: str) -> bool:
    return column.endswith("_at") or "_at_of_" in column


def _plain(hint: Any) -> type:  # noqa: ANN401 - a type
    """The class of a hint's values other than None: `tuple` of `Annotated[tuple[str, ...] | None, …]`."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    named = [one for one in get_args(hint) if one is not NoneType]
    if NoneType in get_args(hint):
        return _plain(named[0])
    plain: type = get_origin(hint) or hint
    return plain


_PLAIN: dict[str, type] = {
    **{shown_as(name): _plain(hint) for name, hint in (get_type_hints(Message) | public_fields(Session)).items()},
    **dict.fromkeys((name for name in COLUMNS["sessions"] if name.startswith("entries_of_")), int),
}
"""Column to the class of its values, where it is not text."""
