"""Cursors of lists: where the last page ended, opaque to the caller, good for the list they came from alone.

A cursor carries a digest of what was asked for, so that one of another list or of other filters is refused instead of giving a
page that means nothing. It is no secret and grants nothing: what may be seen is checked at every page.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from app.domain.errors import Fault
from app.errors import Invalid

LONGEST = 4_500
"""Of open sessions the place is a strand: user, window and thread, each of up to 256 characters of four bytes."""

_DIGEST_BYTES = 8

Place = TypeVar("Place")


def cursor_of(place: object, *, of: object) -> str:
    """A cursor at `place` of the list that `of` (its name and filters) describes."""
    packed = msgspec.msgpack.encode(place)
    return urlsafe_b64encode(_digest(of) + packed).decode().rstrip("=")


def place_of(cursor: str | None, *, of: object, kind: type[Place]) -> Place | None:
    """The place where the list goes on; None for its first page. Raises `Invalid` for a cursor that is not of this list."""
    if cursor is None:
        return None
    try:
        decoded = urlsafe_b64decode(cursor.encode("ascii") + b"==") if len(cursor) <= LONGEST else b""
        if decoded[:_DIGEST_BYTES] != _digest(of):
            raise _not_ours()
        return msgspec.msgpack.decode(decoded[_DIGEST_BYTES:], type=kind)
    except (UnicodeEncodeError, Base64Error, ValueError, msgspec.DecodeError) as error:
        raise _not_ours() from error


def page_of(rows: list[Any], *, limit: int) -> tuple[list[Any], Any | None]:
    """Of `limit + 1` rows read: those to show, and the last of them if there are more."""
    shown = rows[:limit]
    return shown, shown[-1] if len(rows) > limit else None


def _digest(of: object) -> bytes:
    # Sets have no order of their own: the same filters must always give the same bytes.
    return blake2b(msgspec.json.encode(of, order="deterministic"), digest_size=_DIGEST_BYTES).digest()


def _not_ours() -> Invalid:
    fault = Fault("cursor", "is not a cursor of this list", "take `next` of the page before, unchanged, with the same filters")
    return Invalid("the cursor is not valid", faults=(fault,))
