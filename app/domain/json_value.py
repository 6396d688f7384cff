"""JSON values that a bot or an admin sends and the product stores: how deep, how many, how large, and with which numbers.

JSON bounds none of it, but every reader and store does, each at its own limit: a value that one of them accepts another could
not read again. And a few hundred kilobytes of JSON may be millions of values. So a value that cannot be stored is refused before
it counts, by a walk that ends at the first value beyond a limit.
"""

import math
from collections.abc import Sequence

from msgspec import json

from app.domain.errors import Fault

DEEPEST = 8
"""Lists and objects within each other."""
MOST_KEYS = 64
"""Of one object."""
MOST_VALUES = 2_000
"""Of one entry, or of one value that is stored by itself; lists and objects count, too."""
LARGEST_INTEGER = 2**53
"""Up to here a number is the same for every reader of JSON."""
LARGEST = 8_192
"""Bytes, as JSON, of a variable's value and of a session's metadata."""

_LONGEST_KEY = 200

TOO_DEEP = f"it is nested deeper than {DEEPEST} levels", "flatten it, or send it as a string"
TOO_MANY_KEYS = f"it holds an object of more than {MOST_KEYS} keys", "send fewer, or a list"
TOO_MANY_VALUES = f"it holds more than {MOST_VALUES} values", "send fewer, or a string"
TOO_LONG_A_NUMBER = "it holds a whole number beyond 2^53", "send such a number as a string"
NO_NUMBER = "it holds a number that JSON does not have, such as NaN", "send null or a string"
HALF_A_CHARACTER = "it holds half of a surrogate pair, which is no character", "send whole ones"
NUL = "it holds the character NUL", "leave it out"


class JsonCheck:
    """Checks values that may hold `MOST_VALUES` together: one for each entry, or for each value that is stored by itself."""

    def __init__(self) -> None:
        self._left = MOST_VALUES

    def fault(self, value: object) -> Fault | None:
        """The first fault of a value that cannot be stored, with its place in the value; None for one that can."""
        return self._walk(value, DEEPEST)

    def fault_as_json(self, value: object) -> Fault | None:
        """The same for a value that takes at most `LARGEST` bytes as JSON."""
        fault = self.fault(value)
        if fault is not None:
            return fault
        size = len(json.encode(value))
        return (
            Fault("", f"it takes {size} bytes as JSON; at most {LARGEST} are allowed", "shorten it") if size > LARGEST else None
        )

    def _walk(self, value: object, levels: int) -> Fault | None:
        self._left -= 1
        if self._left < 0:
            return Fault("", *TOO_MANY_VALUES)
        if isinstance(value, dict):
            return _too_wide(value, levels) or self._walk_object(value, levels - 1)
        if isinstance(value, list | tuple):
            return _too_wide(value, levels) or self._walk_list(value, levels - 1)
        return _scalar_fault(value)

    def _walk_object(self, value: dict[str, object], levels: int) -> Fault | None:
        for key, item in value.items():
            fault = _text_fault(key)
            if fault is not None:
                return fault
            fault = self._walk(item, levels)
            if fault is not None:
                return _within(f".{key[:_LONGEST_KEY]}", fault)
        return None

    def _walk_list(self, value: Sequence[object], levels: int) -> Fault | None:
        for at, item in enumerate(value):
            fault = self._walk(item, levels)
            if fault is not None:
                return _within(f"[{at}]", fault)
        return None


def _within(place: str, fault: Fault) -> Fault:
    """A place is built from the fault outwards: most values have none, and a key may be as long as a body."""
    return Fault(place + fault.where, fault.what, fault.hint)


def _too_wide(value: object, levels: int) -> Fault | None:
    if not levels:
        return Fault("", *TOO_DEEP)
    return Fault("", *TOO_MANY_KEYS) if isinstance(value, dict) and len(value) > MOST_KEYS else None


def _scalar_fault(value: object) -> Fault | None:
    if isinstance(value, str):
        return _text_fault(value)
    if isinstance(value, float):
        return None if math.isfinite(value) else Fault("", *NO_NUMBER)
    if isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        return Fault("", *TOO_LONG_A_NUMBER)
    return None


def _text_fault(text: str) -> Fault | None:
    if "\x00" in text:
        return Fault("", *NUL)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return Fault("", *HALF_A_CHARACTER)
    return None
