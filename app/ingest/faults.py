"""The faults of an entry, all at once: each with its field and how to correct it.

The decoder of the hot path stops at the first fault and knows no domain. So an entry that it refuses is read once more, by the
generic reader of the domain, which gathers all of them. Values that may be a user's words or data are never repeated.
"""

import re

import msgspec

from app.domain.entry import Entry
from app.domain.errors import DomainError, Fault
from app.domain.reading import read
from app.domain.transcript import unstorable_fields
from app.errors import Invalid

LONGEST = 200
"""Characters of an answer that come from the request: names of fields and values may be as long as a body."""

_HINT = "see the field's type and limits in the API guide"
_OWN_DATA = "; data of the bot's own goes into `metadata`"
# Only of these, which hold no user's words, a fault shows the value that was sent.
_SHOWN = frozenset({"role", "type", "channel", "language"})
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


def _faults_in(value: object) -> list[Fault]:
    if not isinstance(value, dict):
        return []
    _, faults = read(Entry, value)
    named = {fault.where for fault in faults}
    return faults + [fault for fault in unstorable_fields(value) if fault.where not in named]


def _shortened(fault: Fault) -> Fault:
    hint = fault.hint + _OWN_DATA if fault.hint.startswith("the fields are") else fault.hint
    what = fault.what
    if what.endswith(" given") and fault.where not in _SHOWN and not _COUNTED.fullmatch(what):
        what = "another value given"
    return Fault(fault.where[:LONGEST], what[:LONGEST], hint)
