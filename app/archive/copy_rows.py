"""Encodes records as rows of Postgres's binary COPY, each in one pass from its fields to the bytes that go out.

A column takes the field or property of its name from the record; an instant takes the field of that name in ms. The few other
columns are given by the caller. A column that has no value by either way stops the import, so a new one cannot be forgotten.
Characters that Postgres cannot hold (NUL) become U+FFFD, so that no text of a user can stop the archive. It refuses to know any
table; a value that its column cannot hold raises `BadData`.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from operator import attrgetter, call
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import BigInteger, Boolean, Column, Integer, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP

from app.archive.tables import instant
from app.domain.instants import ms_of
from app.failures import BadData

NUL = "\x00"
REPLACEMENT = "\ufffd"
_ESCAPED_NUL = b"\\u0000"

ValueEncoder = Callable[[Any], bytes]
"""A value as COPY writes it: the length of its bytes, then the bytes."""

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_COUNT = struct.Struct(">h").pack
_LENGTH = struct.Struct(">i").pack
_INTEGER = partial(struct.Struct(">ii").pack, 4)
_BIG_INTEGER = partial(struct.Struct(">iq").pack, 8)
_BOOLEAN = {True: b"\x00\x00\x00\x01\x01", False: b"\x00\x00\x00\x01\x00", None: _NULL}.__getitem__
_NO_TEXTS = b"\x00\x00\x00\x0c" + struct.Struct(">iii").pack(0, 0, 25)
_TEXTS = struct.Struct(">iiiii").pack
_OID_OF_TEXT = 25
_EPOCH_MS = 946_684_800_000  # Postgres counts from the year 2000
_EARLIEST_MS, _LATEST_MS = ms_of(instant(-(10**18))), ms_of(instant(10**18))
# Most texts of a batch repeat: bots, channels, rules, intents, and the user in each message. A miss costs more than no cache.
_cached = lru_cache(maxsize=4096)
_encode = msgspec.json.Encoder().encode


class RowEncoder:
    """Encodes the rows of one table: `columns` in the order in which `row` writes them."""

    def __init__(self, columns: Mapping[str, tuple[str, ValueEncoder]]) -> None:
        self.columns = tuple(columns)
        self._values = attrgetter(*(path for path, _ in columns.values()))
        self._fields = tuple(field for _, field in columns.values())

    def row(self, record: object) -> bytes:
        """A record's row, without the number of its columns. Raises `BadData`."""
        try:
            return b"".join(map(call, self._fields, self._values(record)))
        except (struct.error, UnicodeEncodeError) as error:
            raise BadData(f"a value is none of its column: {error}") from error


def columns_of(
    columns: Iterable[Column[Any]], record: type[Struct], *, on: str = "", besides: Mapping[str, tuple[str, ValueEncoder]]
) -> dict[str, tuple[str, ValueEncoder]]:
    """Column name to the path of its value and to what encodes it; `on` is the attribute that holds the record."""
    prefix = f"{on}." if on else ""
    return {column.name: besides.get(column.name) or _column(column, record, prefix) for column in columns}


def number_of_columns(columns: Sequence[str]) -> bytes:
    """The start of a row."""
    return _COUNT(len(columns))


def clean(value: str | None) -> str | None:
    """The text without NUL."""
    return value.replace(NUL, REPLACEMENT) if value is not None and NUL in value else value


def text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    if b"\x00" in encoded:
        encoded = value.replace(NUL, REPLACEMENT).encode()
    return _LENGTH(len(encoded)) + encoded


def json(value: object) -> bytes:
    if value is None:
        return _NULL
    encoded = _encode(value)
    # The escape may be part of a text (`\\u0000` after a backslash), so only its presence costs a look at every value.
    if _ESCAPED_NUL in encoded:
        encoded = _encode(without_nul(msgspec.to_builtins(value)))
    return _LENGTH(len(encoded) + 1) + b"\x01" + encoded


def without_nul(value: object) -> object:
    """Plain values without NUL in any text or key."""
    if isinstance(value, str):
        return value.replace(NUL, REPLACEMENT)
    if isinstance(value, dict):
        return {without_nul(key): without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nul(item) for item in value]
    return value


def _column(column: Column[Any], record: type[Struct], prefix: str) -> tuple[str, ValueEncoder]:
    field = f"{column.name}_ms" if isinstance(column.type, TIMESTAMP) else column.name
    if not hasattr(record, field):
        msg = f"column {column} is no field of {record.__name__}: give it a value in app/archive/sessions.py"
        raise TypeError(msg)
    made = next(made for kind, made in _FIELDS.items() if isinstance(column.type, kind))
    return prefix + field, partial(_nullable, made) if column.nullable and made in {_INTEGER, _BIG_INTEGER} else made


def _nullable(field: ValueEncoder, value: object) -> bytes:
    return _NULL if value is None else field(value)


def _instant(at_ms: int | None) -> bytes:
    if at_ms is None:
        return _NULL
    if not _EARLIEST_MS <= at_ms <= _LATEST_MS:
        at_ms = min(max(at_ms, _EARLIEST_MS), _LATEST_MS)
    return _BIG_INTEGER((at_ms - _EPOCH_MS) * 1000)


def uuid(value: str | None) -> bytes:
    if value is None:
        return _NULL
    try:
        return _LENGTH(16) + bytes.fromhex(value.replace("-", ""))
    except ValueError as error:
        raise BadData(f"no UUID: {value[:100]!r}") from error


@_cached
def _texts(values: tuple[str, ...]) -> bytes:
    if not values:
        return _NO_TEXTS
    encoded = _TEXTS(1, 0, _OID_OF_TEXT, len(values), 1) + b"".join(map(text, values))
    return _LENGTH(len(encoded)) + encoded


cached_text: ValueEncoder = _cached(text)
# The first that fits: a BigInteger is an Integer, too.
_FIELDS: dict[type[Any], ValueEncoder] = {
    TIMESTAMP: _instant,
    Uuid: uuid,
    Boolean: _BOOLEAN,
    BigInteger: _BIG_INTEGER,
    Integer: _INTEGER,
    JSONB: json,
    ARRAY: _texts,
    Text: cached_text,
}
