"""The events that webhooks carry, as the OpenAPI document describes them; `app.archive.deliveries` writes their bodies."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, create_model

from app.api.fields import Instant, UuidText
from app.api.session_views import MessageView, SessionSnapshot
from app.domain.records import EventType

TEST = "webhook.test"


class EventData(BaseModel):
    """An event of a session."""

    event_id: Annotated[UuidText, Field(description="Id of the event, the same for all endpoints; `in_reply_to` names it.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    rule: Annotated[str, Field(description="The rule by which it happened.", examples=["K07"])]
    session: Annotated[SessionSnapshot, Field(description="The session as it was at that instant.")]


class AnnouncementData(EventData):
    """A text for the user."""

    text: Annotated[str, Field(description="The text, its placeholders filled in.", examples=["Closed after 15 minutes."])]
    language: Annotated[str, Field(description="Its language in the policy's `texts`.", examples=["default"])]


class UpdateData(EventData):
    """A late entry of a closed session."""

    message: Annotated[MessageView, Field(description="The late entry.")]


class EndpointTestData(BaseModel):
    """A test that was asked for by API."""

    event_id: Annotated[UuidText, Field(description="Id of the event.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    endpoint_id: Annotated[UuidText, Field(description="Id of the endpoint.")]


_DATA: dict[EventType, tuple[type[BaseModel], str]] = {
    "session.opened": (EventData, "A session opened."),
    "session.reminder": (AnnouncementData, "The silence will close a session soon: remind the user."),
    "session.closure_message": (
        AnnouncementData,
        "The silence closes a session: say good-bye. Delivered before `session.closed`.",
    ),
    "session.closed": (EventData, "A session closed."),
    "session.continuation": (
        EventData,
        "Redis lost that a session was closed; the messages it took after that are this session.",
    ),
    "session.updated": (UpdateData, "A late entry came to a closed session."),
}


def _model(event: str, data: type[BaseModel], words: str) -> type[BaseModel]:
    name = "".join(part.title() for part in event.replace("_", ".").split(".")) + "Event"
    fields: dict[str, Any] = {
        "type": (Annotated[Literal[event], Field(description="Type of the event.")], ...),
        "timestamp": (Annotated[Instant, Field(description="When it happened, in the bot's own time.")], ...),
        "data": (Annotated[data, Field(description="The event.")], ...),
    }
    return create_model(name, __doc__=words, **fields)


EVENTS: dict[str, type[BaseModel]] = {event: _model(event, *_DATA[event]) for event in get_args(EventType)} | {
    TEST: _model(TEST, EndpointTestData, "A test of an endpoint, asked for by API.")
}
"""The model of each event's body. An event without data above fails here, at import."""
