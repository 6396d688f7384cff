"""An entry as it is kept in its session's transcript, with the answer that a repeat of it gets."""

from operator import attrgetter
from typing import Any

from msgspec import msgpack

from app.domain.entry import Entry
from app.domain.errors import InvalidEntry
from app.domain.instants import ms_of
from app.domain.nesting import DEEPEST, too_deep
from app.domain.records import Answer, Message, Session

_RARE = (
    "client_session_id",
    "intent_valid",
    "sentiment",
    "context",
    "developer",
    "refresh",
    "window_id",
    "source",
    "in_reply_to",
    "metadata",
)
_rare = attrgetter(*_RARE)
_USUAL = _rare(Entry(user_id="-", role="user"))
_USUAL_BY_NAME = dict(zip(_RARE, _USUAL, strict=True))


def message_of(entry: Entry, message_id: str, *, session: Session, answer: Answer) -> Message:
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
    )


def check(entry: Entry) -> None:
    """JSON's numbers and depth have no end, the transcript's do: an entry that cannot be kept is refused before it counts."""
    if entry.context is None and entry.metadata is None:
        return
    for field, value in (("context", entry.context), ("metadata", entry.metadata)):
        if too_deep(value):
            raise InvalidEntry(field, f"it is nested deeper than {DEEPEST} levels", "flatten it, or send it as a string")
        try:
            msgpack.encode(value)
        except OverflowError as error:
            raise InvalidEntry(field, "it holds a whole number of more than 64 bits", "send such a number as a string") from error


def _rest(entry: Entry, session: Session) -> dict[str, Any] | None:
    if entry.channel == session.channel and _rare(entry) == _USUAL:
        return None  # nearly always
    rest = {name: value for name, usual in _USUAL_BY_NAME.items() if (value := getattr(entry, name)) != usual}
    if entry.channel != session.channel:
        rest["channel"] = entry.channel
    return rest
