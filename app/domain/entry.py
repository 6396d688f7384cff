"""The entry: one message or event that a bot reports, decoded straight from the wire into this record.

It owns the fields, their limits and the spellings that are accepted for one value. It refuses unknown fields: data of the bot's
own belongs in `metadata` (of the message) or `session_metadata` (of the session).
"""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

Role = Literal["user", "bot", "agent", "system"]
EntryType = Literal[
    "message",
    "session.start",
    "session.end",
    "conversation.started",
    "conversation.ended",
    "chat.closed",
    "connect",
    "authorization",
    "handoff",
    "agent.joined",
    "agent.left",
    "escalated",
    "resolved",
    "survey.sent",
    "survey.answered",
    "interrupted",
    "article.opened",
    "search",
    "activity",
    "discard",
    "discard.all",
]

ROLE_SYNONYMS: dict[str, Role] = {"human": "user", "customer": "user", "assistant": "bot", "ai": "bot", "tool": "system"}
"""Other spellings of a role that are accepted on the wire."""

# `$` alone matches before a last line break, too. Python needs this to exclude it; other dialects of patterns do not know it.
END = r"(?!\n)"
# Control characters are refused in ids: a separator of Redis members must never come from outside.
ID_PATTERN = r"^[^\x00-\x1f\x7f]+$"
SLUG_PATTERN = r"^[a-z0-9][a-z0-9_.-]*$"
LANGUAGE_PATTERN = r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$"
SLUG_IN_WORDS = "1 to 64 of a-z, 0-9, `_`, `.` and `-`, the first of them a letter or digit"
LONGEST_SLUG = 64

Id = Annotated[
    str,
    Meta(
        min_length=1, max_length=256, pattern=ID_PATTERN + END, extra={"expected": "1 to 256 characters, no control characters"}
    ),
]
Slug = Annotated[str, Meta(min_length=1, max_length=LONGEST_SLUG, pattern=SLUG_PATTERN + END, extra={"expected": SLUG_IN_WORDS})]
AnyCaseSlug = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=LONGEST_SLUG,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$" + END,
        extra={"expected": SLUG_IN_WORDS},
    ),
]
Language = Annotated[
    str,
    Meta(
        min_length=2,
        max_length=35,
        pattern=LANGUAGE_PATTERN + END,
        extra={"expected": "a language tag such as `pt` or `pt-BR`"},
    ),
]
Tag = Annotated[str, Meta(min_length=1, max_length=128)]
Intent = Annotated[str, Meta(min_length=1, max_length=256)]

_Instant = Annotated[
    datetime,
    Meta(tz=True, extra={"expected": "RFC 3339 with an offset, such as 2026-11-21T10:00:00Z, or whole ms since the epoch"}),
]

# What is accepted on the wire is wider than what an entry holds.
if TYPE_CHECKING:
    RoleGiven = Role
    SentAt = datetime
else:
    RoleGiven = Literal[(*get_args(Role), *ROLE_SYNONYMS)]
    SentAt = _Instant | int

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


class Entry(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One message or event as reported. `channel` is in lower case, `role` one of the four, `sent_at` an instant."""

    user_id: Id
    role: RoleGiven
    message_id: Id | None = None
    channel: AnyCaseSlug = "web"
    conversation_id: Id | None = None
    client_session_id: Id | None = None
    type: EntryType = "message"
    text: Annotated[str, Meta(max_length=32_768)] | None = None
    intent: Intent | None = None
    intent_valid: bool = True
    language: Language | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=64, extra={"expected": "up to 64 texts of 1 to 128 characters"})] = ()
    sentiment: (
        Annotated[dict[str, float], Meta(extra={"expected": 'an object of tones and their levels, such as {"angry": 0.7}'})]
        | None
    ) = None
    context: dict[str, Any] | None = None
    sent_at: SentAt | None = None
    developer: bool = False
    refresh: bool = False
    window_id: Id | None = None
    source: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    in_reply_to: Id | None = None
    metadata: dict[str, Any] | None = None
    session_metadata: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Reduce what may be spelt in several ways to one spelling."""
        if self.role in ROLE_SYNONYMS:
            force_setattr(self, "role", ROLE_SYNONYMS[self.role])
        if self.channel != "web":
            force_setattr(self, "channel", self.channel.lower())
        sent_at: object = self.sent_at
        if isinstance(sent_at, int):
            force_setattr(self, "sent_at", _instant(sent_at))


def _instant(at_ms: int) -> datetime:
    try:
        return _EPOCH + at_ms * _MS
    except OverflowError as error:
        msg = "an instant that the calendar does not have"
        raise ValueError(msg) from error
