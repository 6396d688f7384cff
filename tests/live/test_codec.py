"""Records that version 0.1.0 wrote to Redis are still read."""

import json
from base64 import b64decode
from pathlib import Path
from typing import get_args

import pytest
from msgspec import ValidationError, msgpack

from app.domain.entry import Entry, EntryType
from app.domain.instants import DAY_MS
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Receive, Session
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.live.codec import UNREADABLE, EventRecord, decode_message, decode_record, decode_session, decode_state, encode

WRITTEN = json.loads(Path(__file__).with_name("written_by_0_1_0.json").read_text())
NOON_MS = 1_700_049_600_000
FIRST = "018bd2da-3e01-7dff-8007-b98ca63b51ae"

OLD_SESSION = ["0199aa00-0000-7000-8000-000000000000", "ann", "web", NOON_MS]


def old_record(event_type: str) -> bytes:
    """A record as 0.1.0 encoded it: four fields, and sessions without those added since."""
    return msgpack.encode(["shop", "web:ann", "", [[event_type, OLD_SESSION, NOON_MS, "B04", None]]])


def test_an_opening_under_its_former_name_is_read() -> None:
    record = decode_record(old_record("session.started"))

    assert record == decode_record(old_record("session.opened"))
    assert [event.type for event in record.events] == ["session.opened"]
    assert record.events[0].session == Session("0199aa00-0000-7000-8000-000000000000", "ann", "web", NOON_MS)
    assert record.unassigned == ()


@pytest.mark.parametrize(
    "raw",
    (
        b"",
        b"\xc1",
        old_record("session.unknown"),
        msgpack.encode(["shop"]),
        msgpack.encode(7),
        msgpack.encode(["", "", "", [[]]]),
    ),
)
def test_what_is_no_record_is_refused(raw: bytes) -> None:
    with pytest.raises(UNREADABLE):
        decode_record(raw)


def written(kind: str) -> bytes:
    """Bytes that 0.1.0 wrote, for two sessions of one conversation."""
    return b64decode(WRITTEN[kind])


def test_a_state_of_0_1_0_is_read() -> None:
    """An open session, one closed lately, historic tags, a survey that is waited for, a variable."""
    state = decode_state(written("state"))

    assert state.session is not None
    assert (state.generation, state.session.trade, state.session.late_entries, state.session.session_metadata) == (
        2,
        "agent",
        0,
        None,
    )
    assert state.recent == ((FIRST, NOON_MS + 906_000),)
    assert state.last is None
    assert state.dialog is not None
    assert state.dialog.historic_tags == ("vip", "second")
    assert state.pending is not None
    assert state.pending.survey_until_ms == NOON_MS + 6_000 + DAY_MS
    assert state.variables["name"].value == "Ann"


@pytest.mark.parametrize("kind", get_args(EntryType))
def test_a_conversation_of_0_1_0_goes_on(kind: EntryType) -> None:
    """Every kind of entry, at once and after the deadline, is decided on its state and stored again."""
    state, rules = decode_state(written("state")), BotRules("shop", PolicyVersion(3, 0, Policy()))
    command = Receive(Entry(user_id="ann", role="user", type=kind, tags=("third",)), "m9")
    for at_ms in (NOON_MS + 1_003_000, NOON_MS + DAY_MS):
        decision = decide(Strand("shop", "web:ann"), state, command, rules, at_ms)

        assert decision.answer is not None
        assert decode_state(encode(decision.state)) == decision.state


def test_a_message_and_a_session_of_0_1_0_are_read() -> None:
    message, session = decode_message(written("message")), decode_session(written("session"))

    assert (message.message_id, message.intent, message.late, message.answer.session) == ("m1", "greet", False, "opened")
    assert message.rest == {"context": {"topic": "shoes"}, "metadata": {"a": [1]}, "sentiment": {"angry": 0.5}}
    assert (session.id, session.reason, session.entries, session.closed_at_ms) == (FIRST, "inactivity", 4, NOON_MS + 906_000)


def test_the_event_records_of_0_1_0_are_read() -> None:
    """Records that no archivist had read before the upgrade still decode; a session's opening had another name."""
    records = [decode_record(b64decode(record)) for record in WRITTEN["records"]]

    assert [[event.type for event in record.events] for record in records] == [
        ["session.opened"],
        ["session.reminder"],
        ["session.closure_message", "session.closed"],
        ["session.opened"],
    ]
    assert records[2].events[1].session == decode_session(written("session"))
    assert {record.unassigned for record in records} == {()}


def test_a_record_survives_its_encoding() -> None:
    record = EventRecord("shop", "web:ann", "", decode_record(old_record("session.opened")).events)

    assert decode_record(encode(record)) == record
    with pytest.raises(ValidationError):
        decode_state(encode(record))
