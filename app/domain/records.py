"""What travels between the stages: commands in, decisions out, and the state between them.

All records are frozen and made for msgpack as arrays: append fields with a default at the end, never reorder, never remove,
since states that an older version wrote are read by a newer one. Instants are ms since the epoch, UTC.
"""

from typing import Any, Literal

from msgspec import Struct

from app.domain.entry import Entry, EntryType, Role
from app.domain.policy import PolicyVersion

Reason = Literal[
    "inactivity",
    "superseded",
    "ended",
    "chat_closed",
    "api",
    "refresh",
    "discard",
    "handoff",
    "escalated",
    "resolved",
    "survey_answered",
    "interrupted",
    "new_intent",
    "returned",
    "abandoned",
    "max_duration",
]
SessionOpening = Literal["opened", "continued", "none"]
EventType = Literal["session.started", "session.reminder", "session.closure_message", "session.closed", "session.continuation"]


class BotRules(Struct, frozen=True):
    """What a decision needs to know of a bot."""

    bot: str
    policy: PolicyVersion


class Ended(Struct, frozen=True, array_like=True):
    """A session that an entry ended."""

    session_id: str
    reason: Reason


class Answer(Struct, frozen=True, array_like=True):
    """What a bot is told of its entry; kept with the message, so that a repeat gets the same answer."""

    session_id: str | None
    session: SessionOpening
    sequence: int
    closes_at_ms: int | None
    received_at_ms: int
    closed: tuple[Ended, ...] = ()


class Message(Struct, frozen=True, array_like=True):
    """An entry as kept in its session. `rest` holds the fields that few entries have, by name."""

    sequence: int
    message_id: str
    received_at_ms: int
    role: Role
    type: EntryType
    text: str | None
    answer: Answer
    user_id: str = ""
    intent: str | None = None
    language: str | None = None
    tags: tuple[str, ...] = ()
    sent_at_ms: int | None = None
    rest: dict[str, Any] | None = None


class Session(Struct, frozen=True, array_like=True):
    """One session, open or closed: `closed_at_ms` is None while it is open."""

    id: str
    user_id: str
    channel: str
    opened_at_ms: int
    # … the domain's own fields follow


class State(Struct, frozen=True, array_like=True):
    """A strand's live state. The default is a strand that nobody has heard of."""

    generation: int = 0
    touched_at_ms: int = 0
    session: Session | None = None
    recent: tuple[tuple[str, int], ...] = ()


class Event(Struct, frozen=True, array_like=True):
    """Something that happened to a session; goes to the stream in the commit that made it happen.

    `session` is the whole session as it was at that instant. `data` is what the event adds to it (a text, a language).
    """

    type: EventType
    session: Session
    at_ms: int
    rule: str
    data: dict[str, Any] | None = None


class Receive(Struct, frozen=True):
    """An entry came in. `message_id` is the bot's, or the one generated for it."""

    entry: Entry
    message_id: str


class Wake(Struct, frozen=True):
    """`wake_at_ms` of the last decision came."""


class Close(Struct, frozen=True):
    """A close asked for by API. Nothing happens if `session_id` is not the open session."""

    session_id: str


class ApplyPolicy(Struct, frozen=True):
    """The policy changed: move the deadline."""


Command = Receive | Wake | Close | ApplyPolicy


class Decision(Struct, frozen=True):
    """What follows from a command, to be committed whole or not at all.

    state        the strand's next state
    wake_at_ms   when the strand wants to be woken (`Wake`): the deadline or what comes before it; None: not at all
    keep_until_ms  when the state may be forgotten, given that no session is open
    messages     what to keep, each with the session it belongs to
    events       what happened, in order
    answer       for `Receive` and `Close`
    """

    state: State
    wake_at_ms: int | None
    keep_until_ms: int
    messages: tuple[tuple[str, Message], ...] = ()
    events: tuple[Event, ...] = ()
    answer: Answer | None = None
