"""The wire formats of ingest: one entry, a JSON array of entries, newline-delimited entries; and the faults of an entry.

It knows bytes and records, not HTTP. An entry that cannot be read becomes an `Invalid` in its place, so that it does not fail its
neighbours; also in an array that no JSON reader reads, as long as it is certain where each element begins and ends.

The decoder of the hot path stops at the first fault and knows no domain. So an entry that it refuses is read once more, by the
generic reader of the domain, which gathers all faults, each with its field and how to correct it. Values that may be a user's
words or data are never repeated.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import asdict

from app.domain.entry import Entry
from app.domain.errors import DomainError, Fault
from app.domain.json_value import MOST_KEYS, MOST_VALUES, TOO_MANY_KEYS, TOO_MANY_VALUES, JsonCheck
from app.domain.reading import read
from app.domain.transcript import unstorable_fields
from app.errors import LONGEST_SHOWN, Invalid, TooLarge

_HINT = "see the field's type and limits in the API guide"
_OWN_DATA = "; data of the bot's own goes into `metadata`"
# Only of these, which hold no user's words, a fault shows the value that was sent.
_SHOWN = frozenset({"role", "type", "channel", "language"})
_TEXTS = ("text", "intent", "source", "tags", "sentiment")
_COUNTED = re.compile(r"\d+ (characters|items|names) given")
_PATH = re.compile(r" - at `\$.*`$", re.DOTALL)


def unreadable(body: bytes, error: Exception) -> Invalid:
    """The refusal of an entry, or of a whole batch, that the decoder refused with `error`."""
    try:
        faults = _faults_in(msgspec.json.decode(body))
    except (ValueError, RecursionError):
        faults = []
    faults = faults or [Fault("body", _PATH.sub("", str(error)), _HINT)]
    return Invalid("the entry cannot be read", faults=tuple(map(_shortened, faults)))


def complete(error: DomainError, entry: Entry) -> DomainError:
    """The refusal of an entry that could be read, with the faults that the domain did not get to."""
    named = {fault.where for fault in error.faults}
    error.faults += tuple(fault for fault in unstorable_fields(entry) if fault.where not in named)
    return error


def check_texts(entry: Entry) -> None:
    """Raise `Invalid`, with every fault, for an entry with NUL in a text, which Postgres cannot store."""
    fields = asdict(entry)
    faults = _text_faults(fields)
    if faults:
        raise Invalid("the entry cannot be read", faults=(*faults, *unstorable_fields(fields)))


def _faults_in(value: object) -> list[Fault]:
    if not isinstance(value, dict):
        return []
    if len(value) > MOST_KEYS:  # a fault for each would be many times as long as the body
        return [Fault("body", *TOO_MANY_KEYS)]
    _, faults = read(Entry, value)
    named = {re.split(r"[.\[]", fault.where)[0] for fault in faults}
    unstorable = [*_text_faults(value), *unstorable_fields(value)]
    return faults + [fault for fault in unstorable if fault.where not in named]


def _text_faults(fields: Mapping[str, Any]) -> list[Fault]:
    """The faults of fields that the domain does not look into; ids and names exclude NUL by their patterns."""
    check = JsonCheck()
    found = ((field, check.fault(fields.get(field))) for field in _TEXTS)
    return [Fault(field, fault.what, fault.hint) for field, fault in found if fault is not None]


def _shortened(fault: Fault) -> Fault:
    hint = fault.hint + _OWN_DATA if fault.hint.startswith("the fields are") else fault.hint
    what = fault.what
    if what.endswith(" given") and fault.where not in _SHOWN and not _COUNTED.fullmatch(what):
        what = "another value given"
    return Fault(fault.where[:LONGEST_SHOWN], what[:LONGEST_SHOWN], hint)


MOST_VALUES_OF_BATCH = 20 * MOST_VALUES
"""Of all entries together: decoded, they take some megabytes."""

_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_entries = msgspec.json.Decoder(list[Entry]).decode
_decode_raw = msgspec.json.Decoder(list[Raw]).decode
# Deep nesting raises the last of them.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# Some programs put a byte order mark before UTF-8. Python's JSON reader, which all other routes use, skips it.
_MARK = b"\xef\xbb\xbf"
# The only way to write NUL in JSON: a body without it needs no look into its texts.
_NUL = rb"\u0000"
_BACKSLASH = ord("\\")  # a search for one byte costs a tenth of that for several, and few bodies hold one
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_FIELDS = 300  # tags and tones are lists of up to 64
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{},]', re.DOTALL)
_MOST_TOKENS = 100_000  # splitting a body of nothing but brackets would block the process for a third of a second
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def entry_from(body: bytes) -> Entry:
    """One entry. Raises `Invalid` with every fault."""
    body = body.removeprefix(_MARK)
    if _holds_more_values(body, than=MOST_VALUES):
        raise Invalid("the entry cannot be read", faults=(Fault("body", *TOO_MANY_VALUES),))
    try:
        entry = _decode_entry(body)
    except _UNREADABLE as error:
        raise unreadable(body, error) from error
    if _BACKSLASH in body and _NUL in body:
        check_texts(entry)
    return entry


def entries_from(body: bytes, *, ndjson: bool, limit: int) -> list[Entry | Invalid]:
    """A batch, in order. Raises `Invalid` if it cannot be split into entries, `TooLarge` beyond `limit` entries."""
    body = body.removeprefix(_MARK)
    if _holds_more_values(body, than=MOST_VALUES_OF_BATCH):
        raise TooLarge(f"a batch holds up to {MOST_VALUES_OF_BATCH} values", hint="send fewer entries in one request")
    if ndjson:
        parts: list[Raw] | list[bytes] = [line for line in body.split(b"\n") if line.strip()]
    else:
        entries = _decode_whole(body)
        if entries is not None:
            _check_count(len(entries), limit)
            return list(entries)
        parts = _split(body, limit=limit)
    _check_count(len(parts), limit)
    return [_entry_or_error(bytes(part)) for part in parts]


def _holds_more_values(body: bytes, *, than: int) -> bool:
    """Whether decoding would make so many values. It is asked before: a body of brackets grows to 60 times its size.

    A value follows a comma or is the first of a list or object; the fields of an entry itself have room beside.
    """
    most = 2 * than + _FIELDS
    if _marks(body, 0, len(body)) <= most:
        return False
    # Marks within strings do not count. A string is a value or the key of one, so there are not many more strings than values.
    marks, end = 0, 0
    for strings, found in enumerate(_STRING.finditer(body)):
        marks += _marks(body, end, found.start())
        end = found.end()
        if marks > most or strings > most:
            return True
    return marks + _marks(body, end, len(body)) > most


def _marks(body: bytes, start: int, end: int) -> int:
    return body.count(b",", start, end) + body.count(b"[", start, end) + body.count(b"{", start, end)


def _decode_whole(body: bytes) -> list[Entry] | None:
    if _NUL in body:
        return None
    try:
        return _decode_entries(body)
    except _UNREADABLE:
        return None


def _split(body: bytes, *, limit: int) -> list[Raw] | list[bytes]:
    try:
        return _decode_raw(body)
    except _UNREADABLE as error:
        elements = _elements(body, limit=limit)
        if elements is None:
            raise unreadable(body, error) from error
        return elements


def _entry_or_error(part: bytes) -> Entry | Invalid:
    try:
        return entry_from(part)
    except Invalid as error:
        return error


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise TooLarge(f"more than {limit} entries in one batch", hint="split it into several requests")


def _elements(body: bytes, *, limit: int) -> list[bytes] | None:
    """The elements of an array that no JSON reader reads, at most `limit` + 1 of them; None where they cannot be separated.

    It looks at brackets, commas and texts alone, so half a surrogate pair or endless nesting stays in its own element, where it
    is refused. Where the array itself is broken it gives up: an entry is accepted only if it is certain where it begins and ends.
    """
    array = body.strip()
    if array[:1] != b"[" or array[-1:] != b"]":
        return None
    elements: list[bytes] = []
    start = 1
    for end in _ends(array):
        element = array[start:end].strip()
        if end < 0 or not element:
            return None
        elements.append(element)
        if len(elements) > limit:
            break
        start = end + 1
    return elements


def _ends(array: bytes) -> Iterator[int]:
    """Where each element ends; -1 where a bracket or a text does not end, or after too many tokens."""
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(array, 1, len(array) - 1)):
        found = token[0]
        depth += _STEP.get(found, 0)
        if depth < 0 or count == _MOST_TOKENS or not _is_ended(found):
            yield -1
        elif found == b"," and not depth:
            yield token.start()
    yield -1 if depth else len(array) - 1


def _is_ended(token: bytes) -> bool:
    """Whether a text has both its quotes; brackets and commas always end."""
    return token[:1] != b'"' or (len(token) > 1 and token.endswith(b'"'))
