"""An entry is judged as a whole: every fault of it at once, each with its field and how to correct it."""

import json

import pytest

from app.domain.entry import Entry
from app.domain.errors import InvalidEntry
from app.errors import LONGEST_SHOWN, Invalid
from app.ingest.wire import complete, entries_from, entry_from

DEEP: list[object] = []
for _ in range(40):
    DEEP = [DEEP]


def faults_of(body: bytes) -> list[tuple[str, str, str]]:
    with pytest.raises(Invalid) as refused:
        entry_from(body)
    return [(fault.where, fault.what, fault.hint) for fault in refused.value.faults]


def test_every_fault_is_reported_at_once() -> None:
    """Wrong values, unknown and missing fields, and JSON that cannot be stored."""
    entry = {
        "role": "king",
        "rle": "user",
        "channel": "Web Chat",
        "tags": ["x", ""],
        "text": 5,
        "sent_at": "2026-11-21T10:00:00",
        "sentiment": {"angry": "very"},
        "context": {"deep": DEEP},
        "metadata": {"number": 2**70},
        "session_metadata": {"long": "x" * 9_000},
    }
    faults = faults_of(json.dumps(entry).encode())

    assert [where for where, *_ in faults] == [
        "role", "rle", "channel", "tags[1]", "text", "sent_at", "sentiment.angry", "user_id",
        "context", "metadata", "session_metadata",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "where", "what", "hint"),
    (
        ({"user_id": "a", "rle": "user", "role": "user"}, "rle", "there is no such field", "the fields are user_id, role"),
        ({"user_id": "a"}, "role", "it is required", "add it: one of agent, ai"),
        ({"role": "user"}, "user_id", "it is required", "add it: 1 to 256 characters"),
        ({"user_id": "a", "role": "king"}, "role", '"king" given', "one of agent"),
        ({"user_id": "a", "role": "user", "channel": "Web Chat"}, "channel", '"Web Chat" given', "1 to 64 of a-z"),
        ({"user_id": "a", "role": "user", "text": 5}, "text", "another value given", "a text is expected"),
        ({"user_id": "a", "role": "user", "sent_at": 10**17}, "sent_at", "another value given", "a whole number from"),
        ({"user_id": "a", "role": "x" * 900}, "role", '"xxx', "one of"),
        ({"user_id": "a", "role": "user", "y" * 900: 1}, "y" * LONGEST_SHOWN, "there is no such field", "the fields are"),
        ("text", "body", "Expected `object`, got `str`", "see the field"),
        ([], "body", "Expected `object`, got `array`", "see the field"),
    ),
)
def test_a_fault_names_its_field_and_its_correction(entry: object, *, where: str, what: str, hint: str) -> None:
    ((found_where, found_what, found_hint),) = faults_of(json.dumps(entry).encode())

    assert found_where == where
    assert found_what.startswith(what)
    assert found_hint.startswith(hint)
    assert len(found_what) <= LONGEST_SHOWN


def test_a_fault_repeats_no_data() -> None:
    """Bots log refusals: a user's words, and data of the bot's own, must not get there."""
    entry = {
        "user_id": "x-9\n",
        "role": "user",
        "text": ["x-9"],
        "sent_at": "x-9",
        "metadata": "x-9",
        "tags": ["x-9", 7, "x-9" * 99],
    }

    assert "x-9" not in str(faults_of(json.dumps(entry).encode()))


@pytest.mark.parametrize(
    "body",
    (b"", b"{", b'{"user_id": "a", "role": "user", "text": "\xff"}', b'{"text": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", b"NaN"),
    ids=("empty", "cut", "no UTF-8", "endless nesting", "NaN"),
)
def test_a_body_that_is_no_json_has_one_fault(body: bytes) -> None:
    assert [where for where, *_ in faults_of(body)] == ["body"]


def test_a_refusal_by_the_domain_is_completed() -> None:
    """The strand of an entry is refused before its JSON is looked at: both are reported, and none twice."""
    entry = Entry(user_id="a", role="user", metadata={"deep": DEEP}, context={"deep": DEEP})
    refused = complete(InvalidEntry("client_session_id", "it is required"), entry)

    assert [fault.where for fault in refused.faults] == ["client_session_id", "context", "metadata"]
    assert [fault.where for fault in complete(refused, entry).faults] == ["client_session_id", "context", "metadata"]


def test_a_text_with_nul_is_refused_alone() -> None:
    """Postgres cannot store it. An escaped backslash before `u0000` is no NUL."""
    bad = rb'{"user_id": "a", "role": "user", "text": "a\u0000b", "tags": ["\u0000"], "sentiment": {"\u0000": 1}}'
    good = rb'{"user_id": "a", "role": "user", "text": "a\\u0000b"}'

    assert [where for where, *_ in faults_of(bad)] == ["text", "tags", "sentiment"]
    assert [where for where, *_ in faults_of(bad.replace(b'"role": "user"', b'"role": 1'))] == [
        "role", "text", "tags", "sentiment",
    ]  # fmt: skip
    refused, taken = entries_from(b"[" + bad + b"," + good + b"]", ndjson=False, limit=5)
    assert isinstance(refused, Invalid)
    assert isinstance(taken, Entry)


def test_an_entry_of_many_unknown_fields_has_one_fault() -> None:
    """A fault for each, with the names of all fields, would be many times as long as the body."""
    body = json.dumps({"user_id": "a", "role": "user"} | {f"f{number}": 1 for number in range(100_000)})

    assert [where for where, *_ in faults_of(body.encode())] == ["body"]


def test_an_empty_batch_has_no_entries() -> None:
    assert entries_from(b" [] ", ndjson=False, limit=5) == []
    assert entries_from(b"\n\n", ndjson=True, limit=5) == []
