"""Sessions, messages, dialogs and variables as JSON: the one shape that the API, webhooks and exports share."""

from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_type_hints

from msgspec import Meta, Struct, json

from app.domain.entry import Role
from app.domain.instants import rfc3339, rfc3339_or_none
from app.domain.records import Dialog, Message, Session, State, Variable
from app.domain.rules import variables
from app.domain.strand import Strand

ROLES = get_args(Role)

_INSTANT = "_at_ms"


def public_fields(record: type[Struct]) -> dict[str, Any]:
    """Name to annotated type of the fields and then the properties of a record that have a description."""
    computed = {name: get_type_hints(each.fget, include_extras=True)["return"] for name, each in _properties(record)}
    hints = {name: hint for name, hint in get_type_hints(record, include_extras=True).items() if name in record.__struct_fields__}
    return {name: hint for name, hint in (hints | computed).items() if description(hint)}


def description(hint: Any) -> Meta | None:  # noqa: ANN401 - a type
    """The part of an annotated type that describes it."""
    return next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Meta) and part.description), None)


def shown_as(name: str) -> str:
    """The name that the JSON has for a field: an instant `x_at_ms` is shown as `x_at`."""
    return name.removesuffix("_ms") if name.endswith(_INSTANT) else name


def _properties(record: type[Struct]) -> Iterator[tuple[str, property]]:
    return ((name, each) for name, each in vars(record).items() if isinstance(each, property))


PUBLIC = tuple(public_fields(Session))
"""The fields of `Session` that the JSON shows beside those that identify it and those of each role."""


def session_view(strand: Strand, session: Session) -> dict[str, Any]:
    """A session as JSON. `status` is open or closed; `closes_at` is when an open one closes if nothing more comes."""
    is_open = session.closed_at_ms is None
    return {
        "id": session.id,
        "bot": strand.bot,
        "conversation_id": strand.conversation,
        "thread": strand.thread or None,
        "user_id": session.user_id,
        "channel": session.channel,
        "status": "open" if is_open else "closed",
        "closes_at": rfc3339(session.deadline_at_ms) if is_open else None,
        **dict(_public(session)),
        "entries_of": {role: getattr(session, f"{role}_entries") for role in ROLES},
        "first_entry_at_of": {role: rfc3339_or_none(getattr(session, f"first_{role}_at_ms")) for role in ROLES},
        "last_entry_at_of": {role: rfc3339_or_none(getattr(session, f"last_{role}_at_ms")) for role in ROLES},
    }


def message_view(message: Message) -> dict[str, Any]:
    """A message as JSON: what the bot sent, without what it left out, and its place and instant."""
    view: dict[str, Any] = {
        "message_id": message.message_id,
        "sequence": message.sequence,
        "late": message.late,
        "received_at": rfc3339(message.received_at_ms),
        "sent_at": rfc3339_or_none(message.sent_at_ms),
        "role": message.role,
        "type": message.type,
        "user_id": message.user_id,
        "text": message.text,
        "intent": message.intent,
        "language": message.language,
        "tags": list(message.tags),
    }
    return view | (message.rest or {})


def message_size(message: Message) -> int:
    """Bytes of a message as JSON."""
    return len(json.encode(message_view(message)))


def first_messages(messages: Iterable[Message], *, after: int, limit: int, most_bytes: int) -> list[Message]:
    """In order, those above `after`: `limit` at most, up to the one that passes `most_bytes`, and two at least."""
    found = sorted((message for message in messages if message.sequence > after), key=lambda message: message.sequence)[:limit]
    total = 0
    for at, message in enumerate(found):
        total += message_size(message)
        if at and total > most_bytes:
            return found[: at + 1]
    return found


def context_view(state: State) -> dict[str, Any]:
    """The dialog of a conversation as JSON. `historic_tags` are sets, the latest last."""
    dialog = state.dialog or Dialog()
    return {
        "context": dialog.context,
        "tags": list(dialog.tags),
        "historic_tags": [[tags] if isinstance(tags, str) else list(tags) for tags in dialog.historic_tags],
        "tones": dialog.tones,
    }


def variables_view(state: State, now_ms: int) -> dict[str, dict[str, Any]]:
    """Name to `value` and `expires_at`, of the variables that have not expired at `now_ms`."""
    return {name: variable_view(variable) for name, variable in variables.unexpired(state.variables, now_ms).items()}


def variable_view(variable: Variable) -> dict[str, Any]:
    return {"value": variable.value, "expires_at": rfc3339_or_none(variable.expires_at_ms)}


def _public(session: Session) -> Iterator[tuple[str, Any]]:
    for name in PUBLIC:
        value = getattr(session, name)
        if name.endswith(_INSTANT):
            yield shown_as(name), rfc3339_or_none(value)
        else:
            yield name, list(value) if isinstance(value, tuple) else value
