"""How deep JSON that a bot gives us may be nested.

Readers of JSON give up at some depth, each at its own: what one of them accepts another could not read again.
"""

from collections.abc import Iterable

DEEPEST = 32
_NESTED = (dict, list)


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
