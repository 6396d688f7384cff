"""Sessions, messages, dialogs and variables as JSON: the one shape that the API, webhooks and exports share.

An explanation says why a session is as it is: the entries and rules that opened it, moved its deadline last and closed it.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args, get_type_hints

from msgspec import Meta, Struct, json

from app.domain.entry import Role
from app.domain.instants import rfc3339, rfc3339_or_none
from app.domain.records import Dialog, Message, Reason, Session, State, Variable
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


RULES = {
    "B03": "a human agent took part",
    "B04": "the user said something",
    "B05": "the bot's session ends where a human takes over, and what follows is of trade `agent`",
    "B08": "the bot gave an explicit signal",
    "B09": "the bot asked for a new session",
    "B10": "the bot reported that the conversation had ended",
    "K05": "the user came back after the silence with a new intent",
    "K06": "the user came back after the silence with input that was invalid for the intent",
    "K07": "nothing came for as long as the policy says",
    "K09": "the policy has a message for the user when silence closes",
    "K11": "the user came back after the silence",
    "K12": "any kind of message starts a session",
    "K13": "an on-connect script, message or dialog starts a session",
    "K15": "the bot said something first",
    "K17": "the user gave authorization details",
    "K20": "it was asked to close",
    "K22": "a refresh was asked for",
    "A04": "the user closed the window",
    "A07": "it was handed over to a human",
    "A08": "the survey was answered in time",
    "A09": "an integration failed",
    "A11": "an article was opened",
    "R06": "it was resolved or escalated, and the policy ends it there",
    "abandon_after_hours": "nothing came for as long as the policy keeps a session whose silence does not close it",
    "max_duration_hours": "it was open as long as the policy allows",
    "max_size": "the quota of a session's entries or bytes was reached",
    "rollback": "the live data came back without its last moments, when the archive held the session already",
    "late": "an entry came after the end, within 24 hours of it",
    "reminder": "the policy has the user reminded before the silence closes the session",
}
"""A row of docs/rules.md, or a field of a policy, to why a session is as it is where this row decided."""

DEADLINE_RULES: dict[Reason, str] = {
    "inactivity": "K07",
    "abandoned": "abandon_after_hours",
    "max_duration": "max_duration_hours",
}
"""The row, or the policy's field, that closes a session at its deadline."""


def explain(strand: Strand, session: Session, messages: Sequence[Message] = ()) -> dict[str, Any]:
    """`words`: sentences, in the order of the session's life; `data`: the same for programs.

    With the session's messages at hand the entries are named with role and type, else by id alone.
    """
    known = {message.message_id: message for message in messages}
    data = {
        "session_id": session.id,
        "bot": strand.bot,
        "conversation_id": strand.conversation,
        "status": "open" if session.closed_at_ms is None else "closed",
        "policy_version": session.policy_version,
        "previous_session_id": session.previous_session_id,
        "opened": _cause(session.opened_at_ms, session.opening_rule, session.opened_by, known),
        "deadline": _deadline(session, known),
        "reminded_at": rfc3339_or_none(session.reminded_at_ms),
        "closed": _closed(session, known),
        "late_entries": session.late_entries,
    }
    return {"words": list(_words(session, data)), "data": data}


def _cause(at_ms: int, rule: str, by: str | None, known: dict[str, Message]) -> dict[str, Any]:
    message = known.get(by or "")
    return {
        "at": rfc3339(at_ms),
        "rule": rule,
        "because": RULES.get(rule, rule),
        "message_id": by,
        "role": message.role if message else None,
        "type": message.type if message else None,
    }


def _deadline(session: Session, known: dict[str, Message]) -> dict[str, Any]:
    rule = DEADLINE_RULES[session.deadline_reason]
    return _cause(session.deadline_at_ms, rule, session.deadline_by, known) | {"reason": session.deadline_reason}


def _closed(session: Session, known: dict[str, Message]) -> dict[str, Any] | None:
    if session.closed_at_ms is None:
        return None
    by_key = session.reason == "api"
    cause = _cause(session.closed_at_ms, session.closing_rule or "", None if by_key else session.closed_by, known)
    return cause | {"reason": session.reason, "key": session.closed_by if by_key else None}


def _words(session: Session, data: dict[str, Any]) -> Iterator[str]:
    opened, deadline, closed = data["opened"], data["deadline"], data["closed"]
    yield f"It opened at {opened['at']} with {_entry(opened)}: {opened['because']} ({opened['rule']})."
    mover = "a change of the policy" if deadline["message_id"] is None else _entry(deadline)
    verb, closes = ("is", "it closes") if closed is None else ("was", "it would close")
    yield (
        f"Its deadline {verb} {deadline['at']}, set last by {mover} under policy version {session.policy_version}: "
        f"then {closes} as `{deadline['reason']}` ({deadline['rule']})."
    )
    if session.paused and closed is None:
        yield "It is paused: it was handed to a human, so the silence does not count until the human leaves."
    if data["reminded_at"] is not None:
        yield f"The user was reminded at {data['reminded_at']}."
    if closed is None:
        yield "It is open."
        return
    closer = "" if closed["message_id"] is None else f" with {_entry(closed)}"
    if closed["key"] is not None:
        closer = f" with the API key {closed['key']!r}"
    yield (
        f"It closed at {closed['at']} as `{closed['reason']}`{closer}: {closed['because']} ({closed['rule']}), "
        f"under policy version {session.policy_version}."
    )
    if session.late_entries:
        yield f"Late entries came after that: {session.late_entries}. They reopened nothing."


def _entry(cause: dict[str, Any]) -> str:
    """Name the entry by its id and, where the transcript is at hand, by what it is."""
    if cause["role"] is None:
        return f"entry {cause['message_id']}"
    return f"entry {cause['message_id']} ({cause['type']} by {cause['role']})"
