"""The faults of an entry, all at once: each with its field and how to correct it.

The decoder of the hot path stops at the first fault and knows no domain. So an entry that it refuses is read once more, by the
generic reader of the domain, which gathers all of them. Values that may be a user's words or data are never repeated.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from app.domain.entry import Entry
from app.domain.errors import DomainError, Fault
from app.domain.json_value import MOST_KEYS, TOO_MANY_KEYS, JsonCheck
from app.domain.reading import read
from app.domain.transcript import unstorable_fields
from app.errors import Invalid

LONGEST = 200
"""Characters of an answer that come from the request: names of fields and values may be as long as a body."""

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
    return Fault(fault.where[:LONGEST], what[:LONGEST], hint)
