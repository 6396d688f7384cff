"""The entry: one message or event that a bot reports, decoded straight from the wire into this record.

It owns the fields, their limits and the spellings that are accepted for one value. It refuses unknown fields: data of the bot's
own belongs in `metadata` (of the message) or `session_metadata` (of the session).
"""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from app.domain.instants import FIRST_MS, LAST_MS, instant_of

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

# The wire accepts more spellings than an entry holds.
if TYPE_CHECKING:
    RoleGiven = Role
    SentAt = datetime
else:
    RoleGiven = Literal[(*get_args(Role), *ROLE_SYNONYMS)]
    SentAt = _Instant | Annotated[int, Meta(ge=FIRST_MS, le=LAST_MS)]


class Entry(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One message or event as reported. `channel` is in lower case, `role` one of the four, `sent_at` an instant."""

    user_id: Annotated[Id, Meta(description="Your id for the user.", examples=["ann"])]
    role: Annotated[
        RoleGiven,
        Meta(description="The sender. Synonyms: `human`, `customer` (user), `assistant`, `ai` (bot), `tool` (system)."),
    ]
    message_id: Annotated[
        Id | None,
        Meta(
            description="Your id for the entry: a repeat gets the first answer and changes nothing. Generated if left out.",
            examples=["m1"],
        ),
    ] = None
    channel: Annotated[AnyCaseSlug, Meta(description="The channel, in any case.", examples=["web"])] = "web"
    conversation_id: Annotated[
        Id | None, Meta(description="Your id for the thread with this user; channel and user if left out.", examples=["web:ann"])
    ] = None
    client_session_id: Annotated[
        Id | None, Meta(description="Your id for the session, with the method `client`.", examples=["visit-1"])
    ] = None
    type: Annotated[EntryType, Meta(description="A message, or which event.")] = "message"
    text: Annotated[
        Annotated[str, Meta(max_length=32_768)] | None,
        Meta(description="The text of the message.", examples=["Where is my order?"]),
    ] = None
    intent: Annotated[Intent | None, Meta(description="The intent that your bot recognised.", examples=["order.status"])] = None
    intent_valid: Annotated[bool, Meta(description="Whether the input was valid for the intent.", examples=[True])] = True
    language: Annotated[Language | None, Meta(description="The language.", examples=["en"])] = None
    tags: Annotated[
        Annotated[tuple[Tag, ...], Meta(max_length=64, extra={"expected": "up to 64 texts of 1 to 128 characters"})],
        Meta(description="A set of tags: it replaces the current set.", examples=[["vip"]]),
    ] = ()
    sentiment: Annotated[
        Annotated[
            dict[str, float],
            Meta(max_length=64, extra={"expected": 'an object of tones and their levels, such as {"angry": 0.7}'}),
        ]
        | None,
        Meta(description="Level by tone.", examples=[{"angry": 0.7}]),
    ] = None
    context: Annotated[
        dict[str, Any] | None,
        Meta(
            description="Topic and details of the dialog, up to 8 levels deep, with 64 keys an object and 2,000 values an entry.",
            examples=[{"topic": "order"}],
        ),
    ] = None
    sent_at: Annotated[
        SentAt | None,
        Meta(
            description="When it was sent: RFC 3339 with an offset, or ms since the epoch. It moves a clock only in a sandbox.",
            examples=["2026-11-21T10:00:00Z"],
        ),
    ] = None
    developer: Annotated[
        bool, Meta(description="Whether a developer tests: the session is flagged and never billed.", examples=[False])
    ] = False
    refresh: Annotated[
        bool,
        Meta(
            description="Whether to clear everything, close as `refresh`, and open a new session with this entry.",
            examples=[False],
        ),
    ] = False
    window_id: Annotated[Id | None, Meta(description="The window or tab, on channel `help`.", examples=["window-1"])] = None
    source: Annotated[
        Annotated[str, Meta(min_length=1, max_length=64)] | None,
        Meta(description="How the article was opened: click, link, search.", examples=["click"]),
    ] = None
    in_reply_to: Annotated[
        Id | None,
        Meta(
            description="The `event_id` of the closure message or reminder that this entry passes on: it opens no session.",
            examples=["5f0c6f0e-6f0b-5b8e-9a55-0d5d2a3a9f11"],
        ),
    ] = None
    metadata: Annotated[
        dict[str, Any] | None,
        Meta(
            description="Your own data of the message, up to 8 levels deep, with 64 keys an object and 2,000 values an entry.",
            examples=[{"page": "/cart"}],
        ),
    ] = None
    session_metadata: Annotated[
        dict[str, Any] | None,
        Meta(
            description="Your own data of the session, up to 8 KB: merged, the newest value of a key. Webhooks carry it.",
            examples=[{"phone": "+5491122334455"}],
        ),
    ] = None

    def __post_init__(self) -> None:
        """Reduce what may be spelt in several ways to one spelling."""
        if self.role in ROLE_SYNONYMS:
            force_setattr(self, "role", ROLE_SYNONYMS[self.role])
        if self.channel != "web":
            force_setattr(self, "channel", self.channel.lower())
        sent_at: object = self.sent_at
        if sent_at is not None and isinstance(sent_at, int):
            force_setattr(self, "sent_at", instant_of(sent_at))
