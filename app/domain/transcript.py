"""An entry as stored in its session's transcript, with the answer that a repeat of it gets.

Which fields of an entry a message keeps is derived from `Entry`: each is a field of `Message` or goes into its `rest`.
"""

from collections.abc import Mapping
from functools import partial
from operator import attrgetter
from typing import Any

from msgspec import json

from app.domain import redaction
from app.domain.entry import Entry
from app.domain.errors import Fault, InvalidEntry
from app.domain.instants import ms_of
from app.domain.json_value import JsonCheck
from app.domain.policy.model import Policy
from app.domain.records import Answer, Message, Session

# Kept by name where the session does not say it already.
_OF_THE_SESSION = ("channel", "conversation_id")
_OWN = frozenset(Message.__struct_fields__)
_RARE = tuple(
    name for name in Entry.__struct_fields__ if name not in _OWN and f"{name}_ms" not in _OWN and name not in _OF_THE_SESSION
)
_rare_of = attrgetter(*_RARE)
_encode = json.Encoder().encode
_DEFAULTS = _rare_of(Entry(user_id="-", role="user"))
_JSON_FIELDS = (("context", JsonCheck.fault), ("metadata", JsonCheck.fault), ("session_metadata", JsonCheck.fault_as_json))
_DEFAULT_BY_NAME = dict(zip(_RARE, _DEFAULTS, strict=True))


def message_of(
    entry: Entry, message_id: str, *, policy: Policy, session: Session | None, answer: Answer, late: bool = False
) -> Message:
    """The message to store in `session`, or with no session, with the texts that `policy` lets a transcript keep."""
    entry = redaction.to_store(entry, policy)
    return Message(
        answer.sequence,
        message_id,
        answer.received_at_ms,
        entry.role,
        entry.type,
        entry.text,
        answer,
        entry.user_id,
        entry.intent,
        entry.language,
        entry.tags,
        None if entry.sent_at is None else ms_of(entry.sent_at),
        _rest(entry, session),
        late,
    )


def entry_from(message: Message, *, channel: str, conversation_id: str) -> Entry:
    """The entry that a message was made of, without `sent_at`; `channel` and `conversation_id` are the session's."""
    fields: dict[str, Any] = {"channel": channel, **(message.rest or {})}
    return Entry(
        user_id=message.user_id,
        role=message.role,
        message_id=message.message_id,
        conversation_id=conversation_id,
        type=message.type,
        text=message.text,
        intent=message.intent,
        language=message.language,
        tags=message.tags,
        **fields,
    )


def check(entry: Entry) -> None:
    """Raise `InvalidEntry`, with every fault, for an entry with JSON that cannot be stored, before it counts."""
    if entry.context is None and entry.metadata is None and entry.session_metadata is None:
        return
    faults = unstorable_fields(entry)
    if faults:
        error = InvalidEntry(faults[0].where, faults[0].what, faults[0].hint)
        error.faults = tuple(faults)
        raise error


def size_of(entry: Entry) -> int:
    """Bytes of an entry as JSON, without the fields that were left out: what the quota of a session counts."""
    return len(_encode(entry))


def unstorable_fields(entry: Entry | Mapping[str, Any]) -> list[Fault]:
    """The faults of an entry's JSON that cannot be stored; also of one, as decoded JSON, that is no `Entry` for other reasons."""
    value_of = entry.get if isinstance(entry, Mapping) else partial(getattr, entry)
    check = JsonCheck()
    found = ((field, fault_in(check, value_of(field))) for field, fault_in in _JSON_FIELDS)
    return [Fault(field, fault.what, fault.hint) for field, fault in found if fault is not None]


def _rest(entry: Entry, session: Session | None) -> dict[str, Any] | None:
    channel = None if session is None else session.channel
    if entry.channel == channel and _rare_of(entry) == _DEFAULTS:
        return None  # nearly always
    rest = {name: value for name, default in _DEFAULT_BY_NAME.items() if (value := getattr(entry, name)) != default}
    if entry.channel != channel:
        rest["channel"] = entry.channel
    if session is None and entry.conversation_id is not None:
        rest["conversation_id"] = entry.conversation_id
    return rest
