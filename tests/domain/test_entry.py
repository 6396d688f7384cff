"""Entries as they are decoded: other spellings, limits, and every fault at once by the generic reader."""

from datetime import datetime
from typing import Any

import pytest
from msgspec import Struct, ValidationError, json

from app.domain.entry import ROLE_SYNONYMS, Entry
from app.domain.errors import DomainError, Fault, InvalidEntry
from app.domain.reading import read
from app.domain.transcript import unstorable_fields
from tests.domain.talk import entry_of

ROLES = "one of agent, ai, assistant, bot, customer, human, system, tool, user"
EXPECTED_SLUG = "1 to 64 of a-z, 0-9, `_`, `.` and `-`, the first of them a letter or digit is expected"


def decoded(**fields: object) -> Entry:
    return json.decode(json.encode({"user_id": "ann", "role": "user", **fields}), type=Entry)


@pytest.mark.parametrize(
    ("given", "role"), (*ROLE_SYNONYMS.items(), ("user", "user"), ("bot", "bot"), ("agent", "agent"), ("system", "system"))
)
def test_roles_have_synonyms(given: str, role: str) -> None:
    assert decoded(role=given).role == role


def test_channel_is_in_lower_case() -> None:
    assert [decoded(channel=channel).channel for channel in ("WhatsApp", "sms")] == ["whatsapp", "sms"]
    assert decoded().channel == "web"


@pytest.mark.parametrize("sent_at", ("2026-11-21T12:00:00.250Z", "2026-11-21T13:00:00.250+01:00", 1_795_262_400_250))
def test_instants_have_two_spellings(sent_at: object) -> None:
    """RFC 3339 or ms since the epoch."""
    assert decoded(sent_at=sent_at).sent_at == decoded(sent_at="2026-11-21T12:00:00.250Z").sent_at
    assert read(Entry, {"user_id": "ann", "role": "user", "sent_at": sent_at}) == (entry_of("user", sent_at=sent_at), [])


@pytest.mark.parametrize("sent_at", (10**15, -(10**15), 10**40, "2026-11-21T12:00:00", "yesterday", 1.5, True))
def test_instants_that_are_none(sent_at: object) -> None:
    with pytest.raises(ValidationError, match="sent_at"):
        decoded(sent_at=sent_at)
    made, faults = read(Entry, {"user_id": "ann", "role": "user", "sent_at": sent_at})

    assert made is None
    assert [fault.where for fault in faults] == ["sent_at"]
    assert faults[0].hint in {
        "RFC 3339 with an offset, such as 2026-11-21T10:00:00Z, or whole ms since the epoch is expected",
        "a whole number from -62135596800000 to 253402300799999 is expected",
    }


def test_every_fault_of_an_entry_is_found_at_once() -> None:
    """In the order of the entry, then the fields that are missing; each with what is allowed."""
    given: dict[str, Any] = {
        "role": "boss",
        "channel": "e mail",
        "message_id": "",
        "conversation_id": "a\x00b",
        "type": "shout",
        "text": "x" * 32_769,
        "intent_valid": "yes",
        "language": "portuguese!",
        "tags": ["ok", 5, "y" * 129],
        "sentiment": {"angry": "very", "sad": 1, "calm": True},
        "context": [],
        "developer": None,
        "metadata": {"anything": [None, {"at": "all"}]},
        "whatever": 1,
    }

    made, faults = read(Entry, given)

    assert made is None
    assert [(fault.where, fault.what, fault.hint) for fault in faults if fault.where not in {"type", "whatever"}] == [
        ("role", '"boss" given', f"{ROLES} is expected"),
        ("channel", '"e mail" given', EXPECTED_SLUG),
        ("message_id", "0 characters given", "1 to 256 are allowed"),
        ("conversation_id", '"a\\u0000b" given', "1 to 256 characters, no control characters is expected"),
        ("text", "32769 characters given", "at most 32768 are allowed"),
        ("intent_valid", '"yes" given', "true or false is expected"),
        ("language", '"portuguese!" given', "a language tag such as `pt` or `pt-BR` is expected"),
        ("tags[1]", "5 given", "a text is expected"),
        ("tags[2]", "129 characters given", "1 to 128 are allowed"),
        ("sentiment.angry", '"very" given', "a number is expected"),
        ("sentiment.calm", "true given", "a number is expected"),
        ("context", "[] given", "an object is expected"),
        ("developer", "null given", "true or false is expected"),
        ("user_id", "it is required", "add it: 1 to 256 characters, no control characters"),
    ]
    assert {fault.where: fault.what for fault in faults}["whatever"] == "there is no such field"


def test_values_that_json_cannot_hold_are_not_shown() -> None:
    _, faults = read(Entry, {"user_id": "ann", "role": {"half": "\ud800"}})

    assert faults[0].what == "a value that JSON cannot hold given"


def test_lists_and_objects_that_are_none() -> None:
    _, faults = read(Entry, {"user_id": "ann", "role": "user", "tags": "vip", "sentiment": 5, "intent": None})

    assert [(fault.where, fault.hint) for fault in faults] == [
        ("tags", "up to 64 texts of 1 to 128 characters is expected"),
        ("sentiment", 'an object of tones and their levels, such as {"angry": 0.7} is expected'),
    ]
    assert read(Entry, ["no object"])[1][0].hint == "an object of fields is expected"


@pytest.mark.parametrize(
    ("given", "where", "what", "hint"),
    (
        ({"user_id": "ann"}, "role", "it is required", "add it: one of "),
        ({"role": "user"}, "user_id", "it is required", "add it: 1 to 256 characters, no control characters"),
        (
            {"user_id": "ann", "role": "boss"},
            "role",
            '"boss" given',
            f"{ROLES} is expected",
        ),
        ({"user_id": "ann", "role": "user", "sent_at": "now"}, "sent_at", '"now" given', "RFC 3339 with an offset, such as"),
    ),
)
def test_a_fault_says_what_is_expected(given: dict[str, Any], where: str, what: str, hint: str) -> None:
    """By the field's own words if it has some, else by its values."""
    _, (fault,) = read(Entry, given)

    assert (fault.where, fault.what) == (where, what)
    assert fault.hint.startswith(hint)
    if where == "role" and "role" not in given:
        assert fault.hint == f"add it: {ROLES}"


def test_an_instant_without_words_of_its_own() -> None:
    """The reader's own words, and the value."""

    class Dated(Struct):
        at: datetime
        name: str

    _, faults = read(Dated, {"at": 1.5})

    assert [(fault.where, fault.what, fault.hint) for fault in faults] == [
        ("at", "1.5 given", "RFC 3339 with an offset is expected"),
        ("name", "it is required", "add it"),
    ]


def test_json_that_cannot_be_stored_is_found_in_a_mapping_too() -> None:
    """An entry that is refused for other reasons is no `Entry`: its fields are looked at by name."""
    given = {"context": {"topic": "a\x00b"}, "metadata": {"page": "/"}}

    assert [fault.where for fault in unstorable_fields(given)] == ["context"]
    assert [fault.where for fault in unstorable_fields(entry_of("user", context=given["context"]))] == ["context"]


def test_a_refusal_of_one_field_is_its_one_fault() -> None:
    """With an empty hint where there is none."""
    assert (InvalidEntry("text", "it is odd").hint, InvalidEntry("text", "it is odd").faults) == (
        "",
        (Fault("text", "it is odd", ""),),
    )
    assert InvalidEntry("text", "it is odd", "make it even").faults == (Fault("text", "it is odd", "make it even"),)
    assert DomainError("odd").hint == ""
