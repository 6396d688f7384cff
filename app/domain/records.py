"""What travels between the stages: commands in, decisions out, and the state between them.

All records are frozen and made for msgpack as arrays: append fields with a default at the end, never reorder, never remove,
since states that an older version wrote are read by a newer one. They hold data only and can form no cycle, so the garbage
collector need not look at them (`gc=False`): with 50,000 states in a cache it would do little else.
Instants are ms since the epoch, UTC.
"""

from typing import Any, Literal

from msgspec import Struct

from app.domain.entry import Entry, EntryType, Role
from app.domain.policy.parse import PolicyVersion

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
Trade = Literal["bot", "agent"]
Outcome = Literal["resolved", "escalated", "handed_off", "abandoned", "completed"]
SessionOpening = Literal["opened", "continued", "none"]
EventType = Literal["session.opened", "session.reminder", "session.closure_message", "session.closed", "session.continuation"]


class BotRules(Struct, frozen=True, gc=False):
    """What a decision needs to know of a bot."""

    bot: str
    policy: PolicyVersion


class Ended(Struct, frozen=True, gc=False, array_like=True):
    """A session that an entry ended."""

    session_id: str
    reason: Reason


class Answer(Struct, frozen=True, gc=False, array_like=True):
    """What a bot is told of its entry; kept with the message, so that a repeat gets the same answer."""

    session_id: str | None
    session: SessionOpening
    sequence: int
    closes_at_ms: int | None
    received_at_ms: int
    closed: tuple[Ended, ...] = ()


class Message(Struct, frozen=True, gc=False, array_like=True):
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


class Session(Struct, frozen=True, gc=False, array_like=True):
    """One session, open or closed: `closed_at_ms` is None while it is open.

    What each entry changes comes first: replacing a field costs less the nearer it is to the front.
    """

    id: str
    user_id: str
    channel: str
    opened_at_ms: int
    # what was counted
    entries: int = 0
    last_entry_at_ms: int = 0
    deadline_at_ms: int = 0
    deadline_by: str | None = None  # message id of the entry that moved it last; None: a change of policy
    any_clock_at_ms: int = 0  # the silence is counted from here, or from the next
    user_clock_at_ms: int = 0
    interactions: int = 0
    user_entries: int = 0
    last_user_at_ms: int | None = None
    bot_entries: int = 0
    last_bot_at_ms: int | None = None
    interactive: bool = False
    counted: bool = True
    intent: str | None = None
    billing_sessions: int = 0
    billed_until_ms: int = 0
    agent_entries: int = 0
    last_agent_at_ms: int | None = None
    system_entries: int = 0
    last_system_at_ms: int | None = None
    first_user_at_ms: int | None = None
    first_bot_at_ms: int | None = None
    first_agent_at_ms: int | None = None
    first_system_at_ms: int | None = None
    asked_at_ms: int | None = None  # the first message by the user
    first_response_ms: int | None = None  # from there to the first message by a bot or an agent
    # what was seen last, beside the intent
    language: str | None = None
    tags: tuple[str, ...] = ()
    # who takes part, beside the user
    trade: Trade = "bot"
    developer: bool = False
    # how it opened
    opened_by: str = ""  # message id
    opening_rule: str = ""
    previous_session_id: str | None = None
    # why it will close at its deadline, as computed under `policy_version`
    policy_version: int = 0
    deadline_reason: Reason = "inactivity"
    remind_at_ms: int | None = None
    reminded_at_ms: int | None = None
    reminded_since_ms: int | None = None  # the start of the silence that the last reminder was about
    paused: bool = False
    # how it closed
    closed_at_ms: int | None = None
    reason: Reason | None = None
    closing_rule: str | None = None
    closed_by: str | None = None  # message id, where an entry closed it
    # what came of it
    outcome: Outcome | None = None
    contained: bool | None = None
    handed_off_at_ms: int | None = None
    escalated_at_ms: int | None = None
    resolved_at_ms: int | None = None
    survey_sent_at_ms: int | None = None
    survey_answered_at_ms: int | None = None


class Dialog(Struct, frozen=True, gc=False, array_like=True):
    """What the bot has told of its dialog: topic and details, tags of now and of before, tones to levels."""

    context: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    historic_tags: tuple[str, ...] = ()
    tones: dict[str, float] = {}


class Pending(Struct, frozen=True, gc=False, array_like=True):
    """What a strand waits for, each until its instant: an agent after a hand-off, the answer to a survey."""

    agent_until_ms: int = 0
    survey_until_ms: int = 0


class Variable(Struct, frozen=True, gc=False, array_like=True):
    """A JSON value that a bot keeps with its user. None: it ends with the session."""

    value: Any
    expires_at_ms: int | None = None


class State(Struct, frozen=True, gc=False, array_like=True):
    """A strand's live state. The default is a strand that nobody has heard of."""

    generation: int = 0
    touched_at_ms: int = 0
    session: Session | None = None
    recent: tuple[tuple[str, int], ...] = ()
    last_session_id: str | None = None
    dialog: Dialog | None = None
    pending: Pending | None = None
    variables: dict[str, Variable] = {}


class Event(Struct, frozen=True, gc=False, array_like=True):
    """Something that happened to a session; goes to the stream in the commit that made it happen.

    `session` is the whole session as it was at that instant. `data` is what the event adds to it (a text, a language).
    """

    type: EventType
    session: Session
    at_ms: int
    rule: str
    data: dict[str, Any] | None = None


class Receive(Struct, frozen=True, gc=False):
    """An entry came in. `message_id` is the bot's, or the one generated for it."""

    entry: Entry
    message_id: str


class Wake(Struct, frozen=True, gc=False):
    """`wake_at_ms` of the last decision came."""


class Close(Struct, frozen=True, gc=False):
    """A close asked for by API. Nothing happens if `session_id` is not the open session."""

    session_id: str


class ApplyPolicy(Struct, frozen=True, gc=False):
    """The policy changed: move the deadline."""


class SetVariable(Struct, frozen=True, gc=False):
    """Keep a variable with the conversation; `ttl_ms` None: until the session closes."""

    name: str
    value: Any
    ttl_ms: int | None = None


class DeleteVariable(Struct, frozen=True, gc=False):
    """Forget a variable. Nothing happens if there is none of this name."""

    name: str


Command = Receive | Wake | Close | ApplyPolicy | SetVariable | DeleteVariable


class Decision(Struct, frozen=True, gc=False):
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
