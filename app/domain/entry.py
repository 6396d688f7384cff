"""The entry: the one thing a bot reports. It is decoded straight from the wire into this record.

Field meanings: `docs/api.md`, "Report entries". Anything a bot wants to keep beside these goes in `metadata`.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

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

# Control characters are refused in ids: a separator of Redis members must never come from outside. The patterns end in
# `$(?!\n)` since `$` alone matches before a last line break, too.
Id = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
Slug = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_.-]*$(?!\n)")]
Language = Annotated[str, Meta(min_length=2, max_length=35, pattern=r"^[A-Za-z]{2,8}([-_][A-Za-z0-9]{1,8})*$(?!\n)")]
Tag = Annotated[str, Meta(min_length=1, max_length=128)]


class Entry(Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One message or event as reported. `docs/api.md`, "Report entries"."""

    user_id: Id
    role: Role
    message_id: Id | None = None
    channel: Slug = "web"
    conversation_id: Id | None = None
    client_session_id: Id | None = None
    type: EntryType = "message"
    text: Annotated[str, Meta(max_length=32_768)] | None = None
    intent: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    intent_valid: bool = True
    language: Language | None = None
    tags: Annotated[tuple[Tag, ...], Meta(max_length=64)] = ()
    sentiment: dict[str, float] | None = None
    context: dict[str, Any] | None = None
    sent_at: Annotated[datetime, Meta(tz=True)] | None = None
    developer: bool = False
    refresh: bool = False
    window_id: Id | None = None
    source: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    in_reply_to: Id | None = None
    metadata: dict[str, Any] | None = None
