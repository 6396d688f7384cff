"""The elements of a JSON array that no JSON reader reads: one broken entry must not fail the batch that it came in.

It looks at brackets, commas and texts alone, so half a surrogate pair or depth without end stays in its own element, where it is
refused. Where the array itself is broken it gives up: an entry is taken only if it is certain where it begins and ends.
"""

import re
from collections.abc import Iterator

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{},]', re.DOTALL)
_MOST_TOKENS = 100_000  # a body of nothing but brackets would hold up everybody else for a third of a second
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def elements_of(body: bytes, *, limit: int) -> list[bytes] | None:
    """The array's elements as they stand, at most `limit` + 1 of them; None where they cannot be told apart."""
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
    """Where each element ends; -1 where a bracket or a text does not, or where it would take too long to tell."""
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(array, 1, len(array) - 1)):
        found = token[0]
        depth += _STEP.get(found, 0)
        if depth < 0 or count == _MOST_TOKENS or not _ended(found):
            yield -1
        elif found == b"," and not depth:
            yield token.start()
    yield -1 if depth else len(array) - 1


def _ended(token: bytes) -> bool:
    """Whether a text has both its quotes; brackets and commas always end."""
    return token[:1] != b'"' or (len(token) > 1 and token.endswith(b'"'))
