"""How states, messages, sessions and event records are stored in Redis: msgpack arrays, positions instead of names.

Only the encoders and decoders live here; the records themselves belong to `app.domain.records`. Records of an older
version are still read: a record only ever grows at the end, each new field with a default.
"""

from typing import Any

from msgspec import DecodeError, Struct, ValidationError, msgpack

from app.domain.records import Event, Message, Session, State, UnassignedEntry

UNREADABLE = (DecodeError, UnicodeDecodeError)
"""Raised by a decoder for bytes that are no such record."""


class EventRecord(Struct, frozen=True, gc=False, array_like=True):
    """One record of the event stream: all events of a strand that one commit made."""

    bot: str  # the strand, in its three parts
    conversation: str  # its second part
    thread: str  # its third part; empty for most
    events: tuple[Event, ...]  # in the order in which they happened; empty if there are only unassigned entries
    unassigned: tuple[UnassignedEntry, ...] = ()  # entries of this commit that belong to no session


encode = msgpack.Encoder().encode
decode_state = msgpack.Decoder(State).decode
decode_message = msgpack.Decoder(Message).decode
decode_session = msgpack.Decoder(Session).decode
_decode_record = msgpack.Decoder(EventRecord).decode


class _FormerRecord(Struct, array_like=True):
    """An event record of version 0.1.0, its events not interpreted."""

    bot: str
    conversation: str
    thread: str
    events: list[list[Any]]


_decode_former = msgpack.Decoder(_FormerRecord).decode


def decode_record(raw: bytes) -> EventRecord:
    """A record of the event stream. Version 0.1.0 called the opening of a session `session.started`."""
    try:
        return _decode_record(raw)
    except ValidationError:
        former = _decode_former(raw)
        former.events = [["session.opened", *event[1:]] if event[:1] == ["session.started"] else event for event in former.events]
        return _decode_record(encode(former))
