"""Pages of lists: how many rows, from which place on, and the cursor of the following page.

A cursor is opaque to the caller and valid for one list alone: it carries a digest of the list's name and filters, so that a
cursor of another list is refused instead of giving a page that means nothing. It is no secret and grants nothing: each page
checks again what the key may see.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from fastapi import Query
from pydantic import BaseModel, Field

from app.domain.errors import Fault
from app.errors import Invalid

LONGEST_CURSOR = 4_500
"""Of open sessions the place is a strand: user, window and thread, each of up to 256 characters of four bytes."""

LARGEST_PAGE = 4 << 20
"""Bytes of the rows of a page: a row may be as large as a body."""

_DIGEST_BYTES = 8
_EXAMPLE = "wOslghr6j1EF"

Place = TypeVar("Place")
Item = TypeVar("Item")

Cursor = Annotated[
    str | None,
    Field(max_length=LONGEST_CURSOR, description="`next` of the page before, with the same filters.", examples=[_EXAMPLE]),
]
Next = Annotated[str | None, Field(description="Cursor of the following page; null on the last page.", examples=[_EXAMPLE])]


class PageQuery(BaseModel):
    """Which page of a list."""

    limit: Annotated[int, Field(ge=1, le=200, description="Rows on the page at most.", examples=[50])] = 50
    cursor: Cursor = None


class LongPageQuery(BaseModel):
    """Which page of a list whose rows are small."""

    limit: Annotated[int, Field(ge=1, le=1000, description="Rows on the page at most.", examples=[200])] = 200
    cursor: Cursor = None


Paged = Annotated[PageQuery, Query()]


class Page(Generic[Place]):
    """One page that a caller asked for. `of` names the list and its filters."""

    def __init__(self, asked: PageQuery | LongPageQuery, *, of: object, place: type[Place]) -> None:
        """Raise `Invalid` if the cursor is not one of this list."""
        self._of = of
        self.limit = asked.limit
        self.after = None if asked.cursor is None else _place_of(asked.cursor, of=of, place=place)

    @property
    def probe(self) -> int:
        """How many rows to read: one more than the page shows says whether another page follows."""
        return self.limit + 1

    def fit(
        self, rows: Sequence[Item], place: Callable[[Item], Place], view: Callable[[Item], object], *, last: Place | None = None
    ) -> tuple[list[msgspec.Raw], str | None]:
        """Of `probe` rows those to show, as JSON, and the cursor of the following page.

        No more are shown than fit into `LARGEST_PAGE`; a row that is larger has a page of its own. `last` is the place to go on
        from if all rows are shown and the caller knows that more follow.
        """
        shown: list[msgspec.Raw] = []
        size = 0
        for row in rows[: self.limit]:
            encoded = msgspec.json.encode(view(row), enc_hook=_model)
            size += len(encoded)
            if shown and size > LARGEST_PAGE:
                break
            shown.append(msgspec.Raw(encoded))
        place_after = place(rows[len(shown) - 1]) if len(rows) > len(shown) else last
        return shown, None if place_after is None else _cursor_of(place_after, of=self._of)


def _model(value: object) -> object:
    """A model of a row as JSON-like values."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise NotImplementedError


def _cursor_of(place: object, *, of: object) -> str:
    return urlsafe_b64encode(_digest(of) + msgspec.msgpack.encode(place)).decode().rstrip("=")


def _place_of(cursor: str, *, of: object, place: type[Place]) -> Place:
    try:
        decoded = urlsafe_b64decode(cursor.encode("ascii") + b"==") if len(cursor) <= LONGEST_CURSOR else b""
        if decoded[:_DIGEST_BYTES] != _digest(of):
            raise _not_of_this_list()
        return msgspec.msgpack.decode(decoded[_DIGEST_BYTES:], type=place)
    except (UnicodeEncodeError, Base64Error, ValueError, msgspec.DecodeError) as error:
        raise _not_of_this_list() from error


def _digest(of: Any) -> bytes:  # noqa: ANN401 - whatever describes a list
    # Sets have no order of their own: the same filters must always give the same bytes.
    return blake2b(msgspec.json.encode(of, order="deterministic"), digest_size=_DIGEST_BYTES).digest()


def _not_of_this_list() -> Invalid:
    fault = Fault("cursor", "is not a cursor of this list", "take `next` of the page before, unchanged, with the same filters")
    return Invalid("the cursor is not valid", faults=(fault,))
