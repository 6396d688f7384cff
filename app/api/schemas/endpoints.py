"""Webhook endpoints as the API takes and tells them."""

from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import Row

from app.api.schemas.common import PRINTABLE, Body
from app.domain.instants import ms_of, rfc3339
from app.domain.records import EventType

DEFAULT_EVENTS: tuple[EventType, ...] = ("session.reminder", "session.closure_message", "session.closed")


def _each_once(events: list[EventType]) -> list[EventType]:
    return [event for event in get_args(EventType) if event in events]


Url = Annotated[str, Field(min_length=1, max_length=2048, pattern=PRINTABLE, examples=["https://example.com/webhooks"])]
Events = Annotated[
    list[EventType],
    Field(min_length=1, max_length=20, description="The events that this endpoint wants to hear of."),
    AfterValidator(_each_once),
]


class NewEndpoint(Body):
    """Where a bot's events go, and which of them."""

    url: Url
    events: Events = Field(default_factory=lambda: list(DEFAULT_EVENTS))


class EndpointChange(Body):
    """What is left out stays as it is. Enabling an endpoint again clears why it was disabled."""

    url: Url | None = None
    events: Events | None = None
    enabled: bool | None = None


class EndpointView(BaseModel):
    """An endpoint. `disabled_reason` says why Adjourn disabled it, if it did."""

    id: str
    bot: str
    url: str
    events: list[str]
    enabled: bool
    disabled_reason: str | None
    previous_secret_expires_at: str | None
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, row: Row[Any]) -> "EndpointView":
        return cls(**_told(row))


class EndpointCreated(EndpointView):
    """A new endpoint with its secret, which is shown this once."""

    secret: Annotated[str, Field(description="For verifying signatures (Standard Webhooks); shown this once.")]

    @classmethod
    def with_secret(cls, row: Row[Any]) -> "EndpointCreated":
        return cls(**_told(row), secret=row.secret)


class Endpoints(BaseModel):
    """A bot's endpoints, the oldest first."""

    endpoints: list[EndpointView]


def _told(row: Row[Any]) -> dict[str, Any]:
    expires_at = row.previous_secret_expires_at
    return {
        "id": row.id,
        "bot": row.bot_id,
        "url": row.url,
        "events": row.events,
        "enabled": row.enabled,
        "disabled_reason": row.disabled_reason,
        "previous_secret_expires_at": None if expires_at is None else rfc3339(ms_of(expires_at)),
        "created_at": rfc3339(ms_of(row.created_at)),
        "updated_at": rfc3339(ms_of(row.updated_at)),
    }
