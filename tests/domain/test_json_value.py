"""JSON is checked within bounded time and memory, whatever its shape."""

import tracemalloc

import pytest
from msgspec import json

from app.domain.json_value import DEEPEST, MOST_KEYS, MOST_VALUES, JsonCheck
from tests.domain.talk import nested


@pytest.mark.parametrize(
    ("value", "where"),
    (
        ({"a": [1, {"b": "\ud800"}]}, ".a[1].b"),
        ({"a": {"\ud800": 1}}, ".a"),
        ([[], [float("inf")]], "[1][0]"),
        ({"k" * 900: float("nan")}, "." + "k" * 200),
        ({"a": {str(key): 1 for key in range(MOST_KEYS + 1)}}, ".a"),
        ({"a": [0] * MOST_VALUES}, f".a[{MOST_VALUES - 2}]"),
        (json.decode("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)), "[0]" * DEEPEST),
    ),
)
def test_a_fault_is_found_at_its_place(value: object, where: str) -> None:
    fault = JsonCheck().fault(value)

    assert fault is not None
    assert fault.where == where


@pytest.mark.parametrize(
    "value", (nested(DEEPEST), {str(key): 1 for key in range(MOST_KEYS)}, [0] * (MOST_VALUES - 1), [2**53, -(2**53), 1e300])
)
def test_a_value_at_the_limits_is_accepted(value: object) -> None:
    assert JsonCheck().fault(value) is None


@pytest.mark.parametrize(
    "value",
    ({"k" * 300_000: [""] * 100_000}, [[]] * 100_000, [{"a": [1]}] * 100_000, nested(100_000)),
    ids=("one long key over many items", "empty lists", "objects", "depth"),
)
def test_a_hostile_value_takes_little_memory(value: object) -> None:
    """A path for every item of the first one took 5.8 GB: 100,000 times the key."""
    tracemalloc.start()
    try:
        fault = JsonCheck().fault(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert fault is not None
    assert peak < 1_000_000
