"""The reader of records: every fault with its path and the words of its type, whichever types a record has."""

from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct

from app.domain.errors import Fault
from app.domain.reading import read


def _is_odd(value: int) -> list[Fault]:
    return [] if value % 2 else [Fault("", f"{value} is even", "an odd number is expected")]


def _is_short(value: str) -> list[Fault]:
    return [] if len(value) < 4 else [Fault("", "it is long", "shorten it")]


class Example(Struct):
    """A field of each type whose words are the reader's own."""

    number: int = 1
    either: int | str = 1
    items: tuple[int, ...] = ()
    short: Annotated[Annotated[str, Meta(extra={"check": _is_short})] | None, Meta(extra={"expected": "a short text"})] = None
    odd: Annotated[int, Meta(extra={"check": _is_odd})] = 1
    other: Annotated[int, Meta(extra={"check": _is_odd})] = 1


@pytest.mark.parametrize(
    ("given", "expected"),
    (
        ({"number": "x"}, Fault("number", '"x" given', "a whole number is expected")),
        ({"either": None}, Fault("either", "null given", "a whole number is expected")),
        ({"items": 5}, Fault("items", "5 given", "a list is expected")),
        ({"items": [1, "x"]}, Fault("items[1]", '"x" given', "a whole number is expected")),
        ({"short": "long"}, Fault("short", "it is long", "shorten it")),
        ({"short": 5}, Fault("short", "5 given", "a short text is expected")),
    ),
)
def test_a_fault_is_in_the_words_of_its_type(given: dict[str, Any], expected: Fault) -> None:
    """A place, the value given, and the value expected."""
    assert read(Example, given) == (None, [expected])


def test_a_check_adds_its_faults_to_those_before() -> None:
    """In the order of the value."""
    _, faults = read(Example, {"number": "x", "odd": 2, "other": 4})

    assert [fault.where for fault in faults] == ["number", "odd", "other"]
