"""The records that pass between the stages: commands in, decisions out, and the state between them.

All records are frozen and made for msgpack as arrays: append fields with a default at the end, never reorder, never remove,
since a newer version reads the states that an older one wrote. They hold data only and can form no cycle, so the garbage
collector need not look at them (`gc=False`): with 50,000 states in a cache it would do little else.

Each field of a stored record says what it means. A name that ends in `_at_ms` or `_until_ms` is an instant in ms since the
epoch, UTC; any other name that ends in `_ms` is a duration.
"""

from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta, Struct

from app.domain.entry import Entry, EntryType, Role
from app.domain.policy.model import PolicyVersion

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
    "max_size",
]
Trade = Literal["bot", "agent"]
Outcome = Literal["resolved", "escalated", "handed_off", "abandoned", "completed", "dropped"]
SessionOpening = Literal["opened", "continued", "none", "late"]
EventType = Literal[
    "session.opened",
    "session.reminder",
    "session.closure_message",
    "session.closed",
    "session.continuation",
    "session.updated",
]
UnassignedReason = Literal["no_session", "too_late", "cannot_start"]

LAST_REPORTED = Meta(extra={"last_reported": True})
"""Marks a field of `Session` that holds the value of the entry's field of the same name, as reported last.

The rule that sets it (`app.domain.rules.counting`) and its column (`app.archive.tables`) follow from the mark.
"""


class SessionQuota(Struct, frozen=True, gc=False):
    """How large a session may become; 0: no limit. The entry that would cross it belongs to the next session (`max_size`)."""

    max_entries: int = 10_000
    max_bytes: int = 10_000_000  # of its entries as JSON, without the fields that were left out


class BotRules(Struct, frozen=True, gc=False):
    """The part of a bot's configuration that a decision needs."""

    bot: str
    policy: PolicyVersion
    quota: SessionQuota = SessionQuota()


class Ended(Struct, frozen=True, gc=False, array_like=True):
    """A session that an entry ended."""

    session_id: str  # the session
    reason: Reason  # why it closed


class Answer(Struct, frozen=True, gc=False, array_like=True):
    """The answer to an entry; stored with the message, so that a repeat gets the same answer."""

    session_id: str | None  # the session that the entry belongs to; None: no session
    session: SessionOpening  # whether the entry opened it, continued it or came after its end
    sequence: int  # the entry's place in its session, from 1; 0 without a session
    closes_at_ms: int | None  # when the session closes if nothing more comes; None: it is closed
    received_at_ms: int  # when the entry was received
    closed: tuple[Ended, ...] = ()  # the sessions that the entry ended


class Message(Struct, frozen=True, gc=False, array_like=True):
    """An entry as stored in its session."""

    sequence: int  # its place in the session, from 1
    message_id: str  # the bot's, or the one generated for it
    received_at_ms: int  # when it was received
    role: Role  # who it comes from
    type: EntryType  # a message, or which event
    text: str | None  # the text, up to 32,768 characters
    answer: Answer  # the answer that a repeat of it gets
    user_id: str = ""  # the user of the conversation
    intent: str | None = None  # the intent that the bot recognised
    language: str | None = None  # a language tag
    tags: tuple[str, ...] = ()  # as reported, commands such as `discard` included
    sent_at_ms: int | None = None  # when the bot says it was sent
    rest: dict[str, Any] | None = None  # the other fields of the entry, by name, where they differ from their defaults
    late: bool = False  # it came after the session had closed


class Session(Struct, frozen=True, gc=False, array_like=True):
    """One session, open or closed: `closed_at_ms` is None while it is open.

    A field or property with a description is public: the JSON of a session shows it, and the OpenAPI document describes it so.
    One with a comment is internal, or shown in another form (`app.domain.session_view`).
    The fields that every entry changes come first: replacing a field costs less the nearer it is to the front.
    """

    id: str  # UUIDv7 of `opened_at_ms`
    user_id: str  # the user of the entry that opened it
    channel: str  # the one channel that it takes place in
    opened_at_ms: Annotated[int, Meta(description="When it opened.")]
    entries: Annotated[int, Meta(description="How many entries it has, late ones left out.", examples=[2])] = 0
    last_entry_at_ms: Annotated[int, Meta(description="When its last entry came.")] = 0
    deadline_at_ms: int = 0  # when it closes if nothing more comes
    deadline_by: str | None = None  # message id of the entry that moved the deadline last; None: a change of policy
    any_clock_at_ms: int = 0  # the silence of everyone is counted from here
    user_clock_at_ms: int = 0  # the silence of the user is counted from here
    interactions: Annotated[int, Meta(description="How many messages by user, bot and agents.", examples=[2])] = 0
    user_entries: int = 0  # entries by the user, without `activity`
    last_user_at_ms: int | None = None  # the last of them
    bot_entries: int = 0  # entries by the bot, without `activity`
    last_bot_at_ms: int | None = None  # the last of them
    interactive: Annotated[bool, Meta(description="Whether the user took part.")] = False
    counted: Annotated[bool, Meta(description="Whether it counts in statistics (`requires_bot`).")] = True
    intent: Annotated[
        str | None, Meta(description="The last intent that was reported.", examples=["order.status"]), LAST_REPORTED
    ] = None
    billing_sessions: Annotated[int, Meta(description="Started blocks with user activity.", examples=[1])] = 0
    billed_until_ms: int = 0  # the end of the billing block that was counted last
    agent_entries: int = 0  # entries by a human agent, without `activity`
    last_agent_at_ms: int | None = None  # the last of them
    system_entries: int = 0  # entries by the system, without `activity`
    last_system_at_ms: int | None = None  # the last of them
    first_user_at_ms: int | None = None  # the user's first entry
    first_bot_at_ms: int | None = None  # the bot's first entry
    first_agent_at_ms: int | None = None  # the first entry by a human agent
    first_system_at_ms: int | None = None  # the system's first entry
    asked_at_ms: int | None = None  # the user's first message
    first_response_ms: Annotated[
        int | None, Meta(description="From the user's first message to the first answer, in ms.", examples=[2000])
    ] = None
    language: Annotated[str | None, Meta(description="The last language that was reported.", examples=["en"]), LAST_REPORTED] = (
        None
    )
    tags: Annotated[tuple[str, ...], Meta(description="The last set of tags that was reported.", examples=[["vip"]])] = ()
    trade: Annotated[Trade, Meta(description="The party beside the user: the bot, or a human agent assisted by it.")] = "bot"
    developer: Annotated[bool, Meta(description="Whether a developer took part: never billed.")] = False
    opened_by: Annotated[str, Meta(description="Id of the message that opened it.", examples=["m1"])] = ""
    opening_rule: Annotated[str, Meta(description="The rule by which it opened.", examples=["B04"])] = ""
    previous_session_id: Annotated[
        str | None, Meta(description="Id of the conversation's session before.", extra_json_schema={"format": "uuid"})
    ] = None
    policy_version: Annotated[int, Meta(description="Version of the policy that its deadline was set under.", examples=[2])] = 0
    deadline_reason: Reason = "inactivity"  # why it closes at its deadline
    remind_at_ms: int | None = None  # when the reminder is due; None: none is due
    reminded_at_ms: Annotated[int | None, Meta(description="When the user was reminded.")] = None  # the last time
    reminded_since_ms: int | None = None  # the start of the silence that the last reminder was about
    paused: bool = False  # no silence until the agent leaves
    closed_at_ms: Annotated[int | None, Meta(description="When it closed.")] = None
    reason: Annotated[Reason | None, Meta(description="Why it closed.")] = None
    closing_rule: Annotated[str | None, Meta(description="The rule by which it closed.", examples=["K07"])] = None
    closed_by: Annotated[
        str | None, Meta(description="Id of the message, or name of the key, that closed it.", examples=["m7"])
    ] = None
    # While it is open: `resolved` or `escalated`, if reported.
    outcome: Annotated[Outcome | None, Meta(description="How it came out; null while it is open.")] = None
    contained: Annotated[
        bool | None, Meta(description="Whether it was closed without hand-off or escalation; null while it is open.")
    ] = None
    handed_off_at_ms: Annotated[int | None, Meta(description="When it was handed off to a human.")] = None  # the first time
    escalated_at_ms: Annotated[int | None, Meta(description="When it was escalated.")] = None  # the last time
    resolved_at_ms: Annotated[int | None, Meta(description="When it was resolved.")] = None  # the last time
    survey_sent_at_ms: Annotated[int | None, Meta(description="When a survey was sent.")] = None  # the last one
    survey_answered_at_ms: Annotated[int | None, Meta(description="When the survey was answered.")] = (
        None  # only if the answer came in time
    )
    session_metadata: Annotated[
        dict[str, Any] | None,
        Meta(description="The bot's own data, merged from its entries.", examples=[{"phone": "+5491122334455"}]),
    ] = None
    late_entries: Annotated[int, Meta(description="Entries that came after the close, within 24 hours.", examples=[0])] = 0
    user_intent: str | None = None  # the intent of the user's last entry; None: it had none
    intents: Annotated[
        tuple[str, ...],
        Meta(description="The user's intents in order, without repeats in a row, the first 32.", examples=[["order.status"]]),
    ] = ()
    agent_present: bool = False  # an agent has joined and not left
    unanswered: bool = False  # the last message is the user's
    size_bytes: int = 0  # of its entries as JSON, late ones left out; counted from version 0.2.0 on

    @property
    def active_until_ms(self) -> int:
        """The instant of the last entry that is no `activity`."""
        return max(
            self.opened_at_ms,
            self.last_user_at_ms or 0,
            self.last_bot_at_ms or 0,
            self.last_agent_at_ms or 0,
            self.last_system_at_ms or 0,
        )

    @property
    def active_ms(
        self,
    ) -> Annotated[int, Meta(description="From the opening to the last entry that is no `activity`, in ms.", examples=[2000])]:
        """From the opening to the last entry that is no `activity` (ruling 14)."""
        return self.active_until_ms - self.opened_at_ms

    @property
    def idle_ms(
        self,
    ) -> Annotated[int | None, Meta(description="From there to the close, in ms; null while it is open.", examples=[900000])]:
        """From there to the close; None while the session is open."""
        return None if self.closed_at_ms is None else self.closed_at_ms - self.active_until_ms


class Dialog(Struct, frozen=True, gc=False, array_like=True):
    """The state of the dialog as the bot reported it."""

    context: dict[str, Any] | None = None  # topic and details, as reported last
    tags: tuple[str, ...] = ()  # the current set
    # The sets before it, the latest last. Version 0.1.0 wrote single tags instead of sets.
    historic_tags: tuple[tuple[str, ...] | str, ...] = ()
    tones: dict[str, float] = {}  # tone to its last level


class Pending(Struct, frozen=True, gc=False, array_like=True):
    """Events that a strand waits for across its sessions."""

    agent_until_ms: int = 0  # until then the next session is with a human agent
    survey_until_ms: int = 0  # until then the answer to a survey counts


class Variable(Struct, frozen=True, gc=False, array_like=True):
    """A JSON value that a bot stores with its conversation or its user."""

    value: Any  # the value, up to 8 KB as JSON
    expires_at_ms: int | None = None  # when it ends; None: with the session


class Announcement(Struct, frozen=True, gc=False, array_like=True):
    """A closure message or reminder that was emitted, by which the bot's own report of it is recognised."""

    event_id: str  # the id that webhooks carry, and `in_reply_to` names
    at_ms: int  # the instant of the event
    text: str  # its text, with the placeholders filled


class State(Struct, frozen=True, gc=False, array_like=True):
    """A strand's live state. The default is that of a strand without any entry yet."""

    generation: int = 0  # sessions that the strand has had
    touched_at_ms: int = 0  # the last decision: a strand's time never goes back
    session: Session | None = None  # the open session
    recent: tuple[tuple[str, int], ...] = ()  # sessions closed in the last 15 minutes: id and instant of the close
    last_session_id: str | None = None  # the session that opened last, if it is closed; else the one before it
    dialog: Dialog | None = None  # None: nothing was reported, or all is cleared
    pending: Pending | None = None  # None: nothing is waited for
    variables: dict[str, Variable] = {}  # name to variable
    last: Session | None = None  # the session that closed last, for 24 hours after its close
    announced: tuple[Announcement, ...] = ()  # the latest closure messages and reminders, for 24 hours


class Event(Struct, frozen=True, gc=False, array_like=True):
    """Something that happened to a session; written to the stream in the commit that made it happen."""

    type: EventType  # what happened
    session: Session  # the whole session as it was at that instant
    at_ms: int  # the instant, in the bot's own time
    rule: str  # the row of the rules that decided
    data: dict[str, Any] | None = None  # what the event adds to the session: a text and its language, or the late message


class UnassignedEntry(Struct, frozen=True, gc=False, array_like=True):
    """An entry that was accepted and belongs to no session."""

    reason: UnassignedReason  # why
    message: Message  # the entry; its `rest` names channel and conversation


class Receive(Struct, frozen=True, gc=False):
    """An entry came in. `message_id` is the bot's, or the one generated for it."""

    entry: Entry
    message_id: str


class Wake(Struct, frozen=True, gc=False):
    """`wake_at_ms` of the last decision came."""


class Close(Struct, frozen=True, gc=False):
    """A close by API. Nothing happens if `session_id` is not the open session. `closed_by` is the name of the key."""

    session_id: str
    closed_by: str | None = None


class ApplyPolicy(Struct, frozen=True, gc=False):
    """The policy changed: move the deadline."""


class SetVariable(Struct, frozen=True, gc=False):
    """Store a variable with the conversation; `ttl_ms` None: until the session closes."""

    name: str
    value: Any
    ttl_ms: int | None = None


class DeleteVariable(Struct, frozen=True, gc=False):
    """Delete a variable. Nothing happens if there is none of this name."""

    name: str


Command = Receive | Wake | Close | ApplyPolicy | SetVariable | DeleteVariable


class Decision(Struct, frozen=True, gc=False):
    """The result of a command, to be committed whole or not at all.

    state        the strand's next state
    wake_at_ms   when the strand wants to be woken (`Wake`): the deadline or the reminder before it; None: not at all
    keep_until_ms  when the state may be deleted, given that no session is open
    messages     the messages to store, each with the id of its session
    events       the events, in order
    answer       for `Receive` and `Close`
    unassigned   the entry, if it belongs to no session
    """

    state: State
    wake_at_ms: int | None
    keep_until_ms: int
    messages: tuple[tuple[str, Message], ...] = ()
    events: tuple[Event, ...] = ()
    answer: Answer | None = None
    unassigned: tuple[UnassignedEntry, ...] = ()


def last_reported() -> dict[str, Any]:
    """Name to annotated type of the fields of `Session` that are marked `LAST_REPORTED`."""
    hints = get_type_hints(Session, include_extras=True)
    return {name: hint for name, hint in hints.items() if LAST_REPORTED in getattr(hint, "__metadata__", ())}
