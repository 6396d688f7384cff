"""What version 0.1.0 wrote to Redis is still read."""

import pytest
from msgspec import ValidationError, msgpack

from app.domain.records import Session, State
from app.live.codec import UNREADABLE, EventRecord, decode_record, decode_state, encode
from tests.domain.talk import NOON_MS

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


def test_a_state_of_the_former_version_is_read() -> None:
    state = decode_state(msgpack.encode([3, NOON_MS, OLD_SESSION, [["s", NOON_MS]], None, None, None, {}]))

    assert state == State(3, NOON_MS, Session(*OLD_SESSION), (("s", NOON_MS),))  # type: ignore[arg-type]


def test_a_record_survives_its_encoding() -> None:
    record = EventRecord("shop", "web:ann", "", decode_record(old_record("session.opened")).events)

    assert decode_record(encode(record)) == record
    with pytest.raises(ValidationError):
        decode_state(encode(record))
