"""Sessions and messages as the API is asked for them and tells them.

What is told is made by the domain, in the one shape that webhooks have too; the models here describe it for the OpenAPI
document, and a test holds the two equal.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from app.api.schemas.common import PRINTABLE, Cursor, Limit, Next, Slug
from app.archive.session_reads import SessionFilter
from app.domain.entry import EntryType, Role
from app.domain.instants import ms_of
from app.domain.records import Outcome, Reason, Trade
from app.domain.strand import LONGEST_CONVERSATION

_LOST_PLUS = re.compile(r" (?=\d{2}:?\d{2}$)")


def _with_plus(value: object) -> object:
    """`+01:00` in an address means a space before `01:00`, unless somebody thought of escaping it."""
    return _LOST_PLUS.sub("+", value) if isinstance(value, str) else value


Text = Annotated[str | None, Field(min_length=1, max_length=256, pattern=PRINTABLE)]
When = Annotated[AwareDatetime | None, BeforeValidator(_with_plus)]


class PageQuery(BaseModel):
    """Which page."""

    limit: Limit = 50
    cursor: Cursor = None


class MessagesQuery(BaseModel):
    """Which page of messages."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    cursor: Cursor = None


class ConversationQuery(PageQuery):
    """Whose conversation; without `bot`, of every bot that the key covers."""

    bot: Slug | None = None


class SessionQuery(PageQuery):
    """Which sessions. An instant `…_from` is included, one `…_to` is not."""

    bot: Slug | None = None
    user_id: Text = None
    channel: Slug | None = None
    conversation_id: Annotated[str | None, Field(min_length=1, max_length=LONGEST_CONVERSATION, pattern=PRINTABLE)] = None
    reason: Reason | None = None
    interactive: bool | None = None
    developer: bool | None = None
    opened_from: When = None
    opened_to: When = None
    closed_from: When = None
    closed_to: When = None

    def filter(self, bots: frozenset[str] | None) -> SessionFilter:
        """What is asked for, of those bots that the asker may see."""
        return SessionFilter(
            bots=bots,
            user=self.user_id,
            channel=self.channel,
            conversation=self.conversation_id,
            reason=self.reason,
            interactive=self.interactive,
            developer=self.developer,
            opened_from_ms=_ms(self.opened_from),
            opened_to_ms=_ms(self.opened_to),
            closed_from_ms=_ms(self.closed_from),
            closed_to_ms=_ms(self.closed_to),
        )


def _ms(at: AwareDatetime | None) -> int | None:
    return None if at is None else ms_of(at)


class CountOf(BaseModel):
    """A count for each role."""

    model_config = ConfigDict(extra="forbid")

    user: int
    bot: int
    agent: int
    system: int


class InstantOf(BaseModel):
    """An instant for each role; null where it took no part."""

    model_config = ConfigDict(extra="forbid")

    user: str | None
    bot: str | None
    agent: str | None
    system: str | None


class SessionView(BaseModel):
    """A session, open or closed. `closes_at` is when an open one would close if nothing more came."""

    model_config = ConfigDict(extra="forbid")

    id: str
    bot: str
    conversation_id: str
    thread: str | None
    user_id: str
    channel: str
    status: Literal["open", "closed"]
    opened_at: str
    opened_by: str
    opening_rule: str
    previous_session_id: str | None
    closes_at: str | None
    closed_at: str | None
    reason: Reason | None
    closing_rule: str | None
    closed_by: str | None
    policy_version: int
    interactive: bool
    developer: bool
    counted: bool
    trade: Trade
    outcome: Outcome | None
    contained: bool | None
    language: str | None
    intent: str | None
    intents: list[str]
    tags: list[str]
    entries: int
    late_entries: int
    entries_of: CountOf
    interactions: int
    billing_sessions: int
    last_entry_at: str
    first_entry_at_of: InstantOf
    last_entry_at_of: InstantOf
    first_response_ms: int | None
    active_ms: int
    idle_ms: int | None
    handed_off_at: str | None
    escalated_at: str | None
    resolved_at: str | None
    survey_sent_at: str | None
    survey_answered_at: str | None
    reminded_at: str | None
    session_metadata: dict[str, Any] | None
    continuation_of: Annotated[str | None, Field(description="The archived session that these messages missed.")]


class MessageView(BaseModel):
    """A message, with what else the bot sent."""

    model_config = ConfigDict(extra="allow")

    message_id: str
    sequence: int
    late: bool
    received_at: str
    sent_at: str | None
    role: Role
    type: EntryType
    user_id: str
    text: str | None
    intent: str | None
    language: str | None
    tags: list[str]


class SessionPage(BaseModel):
    """Sessions, the latest opened first."""

    sessions: list[SessionView]
    next: Next


class LivePage(BaseModel):
    """Open sessions, the longest open first; `open` is how many there are in all."""

    open: int
    sessions: list[SessionView]
    next: Next


class MessagePage(BaseModel):
    """Messages in order."""

    messages: list[MessageView]
    next: Next


class Explanation(BaseModel):
    """Why a session is as it is, in words and as data."""

    words: list[str]
    data: dict[str, Any]
