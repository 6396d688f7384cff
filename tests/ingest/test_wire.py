"""The values that decoding may make of a body are bounded before it is decoded."""

import tracemalloc

import pytest
from msgspec import json

from app.domain.json_value import MOST_VALUES
from app.errors import Invalid, TooLarge
from app.ingest.wire import MOST_VALUES_OF_BATCH, entries_from, entry_from

ENTRY = {"user_id": "ann", "role": "user"}
NESTED = b"[" + b",".join([b"[" * 7 + b"]" * 7] * 60_000) + b"]"
MOST_BYTES = 8 << 20


def of(context: bytes) -> bytes:
    return b'{"user_id": "ann", "role": "user", "context": {"x": ' + context + b"}}"


@pytest.mark.parametrize("body", (of(NESTED), of(b'{"k": ' * 100_000), of(b"[" + b"0," * 400_000 + b"0]")))
def test_a_body_of_brackets_is_refused_before_it_grows(body: bytes) -> None:
    """As an entry, in an array and in lines: 900 KB of nested lists would take 60 MB and a second."""
    tracemalloc.start()
    try:
        with pytest.raises(Invalid):
            entry_from(body)
        for batch, ndjson in ((b"[" + body + b"]", False), (body + b"\n" + body, True)):
            with pytest.raises(TooLarge):
                entries_from(batch, ndjson=ndjson, limit=500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < MOST_BYTES


def test_what_stands_in_strings_is_no_value() -> None:
    """A table sent as text, with quotes and escapes, has any number of commas and brackets."""
    text = ',[{"\\' * 20_000

    assert entry_from(json.encode(ENTRY | {"context": {"table": text}})).context == {"table": text}


def test_as_many_values_as_are_allowed_are_read() -> None:
    """Of an entry, and of a batch: the limit is not reached before it is passed."""
    entry = ENTRY | {"tags": ["x"] * 64, "context": {"x": [0] * (MOST_VALUES - 2)}}
    many = [ENTRY | {"context": {"x": [0] * 70}}] * (MOST_VALUES_OF_BATCH // 80)

    assert entry_from(json.encode(entry)).context is not None
    assert len(entries_from(json.encode(many), ndjson=False, limit=500)) == len(many)


def test_a_string_without_an_end_costs_one_pass() -> None:
    """Of a megabyte of escaped quotes: the search for strings must not begin anew at each."""
    with pytest.raises(Invalid):
        entry_from(of(b"[" * 10_000 + b'"' + b'\\"' * 450_000))
