"""The wire formats of ingest: one entry, a JSON array of entries, newline-delimited entries; and the answers.

It knows bytes and records, not HTTP. An entry that cannot be read becomes an `Invalid` in its place, so that it does not
fail its neighbours.
"""

from functools import lru_cache

import msgspec
from msgspec import Raw, Struct

from app.domain.entry import Entry
from app.domain.instants import rfc3339
from app.errors import Invalid, TooLarge
from app.ingest.elements import elements_of
from app.ingest.faults import unreadable
from app.live.fold import CommandOutcome

_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_entries = msgspec.json.Decoder(list[Entry]).decode
_decode_raw = msgspec.json.Decoder(list[Raw]).decode
# Deep nesting ends in the last of them.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_encode = msgspec.json.Encoder().encode
# Some programs put a byte order mark before UTF-8. Python's reader of JSON, which all other routes have, passes over it.
_MARK = b"\xef\xbb\xbf"


class ClosedView(Struct, frozen=True):
    """A session that an entry ended, as told to the bot."""

    session_id: str
    reason: str


class Receipt(Struct, frozen=True):
    """The answer to an entry, as told to the bot."""

    message_id: str
    session_id: str | None
    session: str
    sequence: int
    closes_at: str | None
    received_at: str
    duplicate: bool
    closed: list[ClosedView]


def entry_from(body: bytes) -> Entry:
    """One entry. Raises `Invalid` with the field, what is wrong with it and how to mend it."""
    try:
        return _decode_entry(body.removeprefix(_MARK))
    except _UNREADABLE as error:
        raise unreadable(error) from error


def entries_from(body: bytes, *, ndjson: bool, limit: int) -> list[Entry | Invalid]:
    """A batch, in order. Raises `Invalid` if the whole cannot be split into entries, `TooLarge` beyond `limit` entries."""
    body = body.removeprefix(_MARK)
    if ndjson:
        parts: list[Raw] | list[bytes] = [line for line in body.split(b"\n") if line.strip()]
    else:
        entries = _read_at_once(body)
        if entries is not None:
            _check_count(len(entries), limit)
            return list(entries)
        parts = _split(body, limit=limit)
    _check_count(len(parts), limit)
    return [_entry_or_error(bytes(part)) for part in parts]


def receipt(message_id: str, outcome: CommandOutcome) -> Receipt:
    """What a bot is told of an entry."""
    answer = outcome.answer
    if answer is None:
        msg = "a received entry always has an answer"
        raise AssertionError(msg)
    return Receipt(
        message_id,
        answer.session_id,
        answer.session,
        answer.sequence,
        None if answer.closes_at_ms is None else _told(answer.closes_at_ms),
        _told(answer.received_at_ms),
        outcome.duplicate,
        [ClosedView(ended.session_id, ended.reason) for ended in answer.closed],
    )


def encode(value: object) -> bytes:
    """An answer's JSON."""
    return _encode(value)


@lru_cache(maxsize=4096)
def _told(at_ms: int) -> str:
    return rfc3339(at_ms)


def _read_at_once(body: bytes) -> list[Entry] | None:
    try:
        return _decode_entries(body)
    except _UNREADABLE:
        return None


def _split(body: bytes, *, limit: int) -> list[Raw] | list[bytes]:
    try:
        return _decode_raw(body)
    except _UNREADABLE as error:
        elements = elements_of(body, limit=limit)
        if elements is None:
            raise unreadable(error) from error
        return elements


def _entry_or_error(part: bytes) -> Entry | Invalid:
    try:
        return entry_from(part)
    except Invalid as error:
        return error


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise TooLarge(f"more than {limit} entries in one batch", hint="split it into several requests")
