"""JSON values that a bot sends and the product stores: how deep, how large, and with which numbers.

JSON bounds neither depth nor numbers, but every reader and store does, each at its own limit: a value that one of them
accepts another could not read again. So what cannot be stored is refused before it counts.
"""

from collections.abc import Iterable

from msgspec import json, msgpack

DEEPEST = 32
LARGEST = 8_192
"""Bytes, as JSON, of a variable's value and of a session's metadata."""

_NESTED = (dict, list)
TOO_DEEP = (f"it is nested deeper than {DEEPEST} levels", "flatten it, or send it as a string")
TOO_LONG_A_NUMBER = ("it holds a whole number of more than 64 bits", "send such a number as a string")
HALF_A_CHARACTER = ("it holds half of a surrogate pair, which is no character", "send whole ones")
NO_NUMBER = ("it holds a number that JSON does not have, such as NaN", "send null or a string")


def too_deep(value: object, levels: int = DEEPEST) -> bool:
    """Whether lists and objects in `value` are nested deeper than `levels`."""
    if isinstance(value, dict):
        inner: Iterable[object] = value.values()
    elif isinstance(value, list):
        inner = value
    else:
        return False
    # A loop, not `any`: this runs for each entry with metadata, and a generator for each level costs twice as much.
    for item in inner if levels else ():
        if isinstance(item, _NESTED) and too_deep(item, levels - 1):
            return True
    return not levels


def unstorable(value: object) -> tuple[str, str] | None:
    """The fault of a value that cannot be stored, and how to correct it; None for one that can."""
    if too_deep(value):
        return TOO_DEEP
    try:
        msgpack.encode(value)
    except OverflowError:
        return TOO_LONG_A_NUMBER
    except UnicodeEncodeError:
        return HALF_A_CHARACTER
    return None


def unstorable_as_json(value: object) -> tuple[str, str] | None:
    """The same for a value that must also come back unchanged from JSON, in at most `LARGEST` bytes."""
    fault = unstorable(value)
    if fault is not None:
        return fault
    encoded = json.encode(value)
    if len(encoded) > LARGEST:
        return f"it takes {len(encoded)} bytes as JSON; at most {LARGEST} are allowed", "shorten it"
    return None if json.decode(encoded) == value else NO_NUMBER
