"""How states, messages, sessions and event records are stored in Redis: msgpack arrays, positions instead of names.

Only the encoders and decoders live here; the records themselves belong to `app.domain.records`. What an older version wrote is
still read: records only ever grow at the end, each new field with a default.
"""

from msgspec import DecodeError, Struct, msgpack

from app.domain.records import Event, Message, Session, State

UNREADABLE = (DecodeError, UnicodeDecodeError)
"""Raised by a decoder for bytes that are no such record."""


class EventRecord(Struct, frozen=True, gc=False, array_like=True):
    """One record of the event stream: all events of a strand that one commit made."""

    bot: str
    conversation: str
    thread: str
    events: tuple[Event, ...]


encode = msgpack.Encoder().encode
decode_state = msgpack.Decoder(State).decode
decode_message = msgpack.Decoder(Message).decode
decode_session = msgpack.Decoder(Session).decode
decode_record = msgpack.Decoder(EventRecord).decode
