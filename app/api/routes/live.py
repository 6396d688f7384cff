"""Open sessions: lists of one bot's and of all bots', counts by channel, and what happens to them as server-sent events."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from msgspec import Struct
from pydantic import BaseModel, Field, WithJsonSchema

from app.api.auth import (
    ConfigDep,
    LiveDep,
    LiveEventsDep,
    PipeDep,
    Principal,
    Reading,
    SessionsDep,
    SettingsDep,
    known_bot,
    principal_of_request,
)
from app.api.fields import BotPath, SlugText
from app.api.paging import Page, Paged, PageQuery
from app.api.responses import MOST_VALUES, JsonResponse, answers
from app.api.session_views import AllLivePage, LivePage
from app.config.follower import ConfigReplica
from app.domain.errors import Fault
from app.errors import AdjournError, Invalid
from app.live.channels import open_by_channel
from app.live.feed import Position
from app.live.view import LiveSession, UpcomingChoice
from app.queries.live_events import ID_PATTERN, Covers, id_of, position_of
from app.queries.sessions import view

router = APIRouter(prefix="/v1", tags=["sessions"])

ID_SCHEMA: dict[str, Any] = {"pattern": f"^{ID_PATTERN}$"}
# A browser sends no empty one; a client that does has seen no event.
_HEADER_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": f"^({ID_PATTERN})?$",
    "examples": ["1795341600000-0-0-0"],
}
_EventId = Annotated[
    str | None,
    Field(
        description="`last_event_id` of `GET /v1/live`, or `id` of an event: go on after it.",
        examples=["1795341600000-0-0-0"],
        json_schema_extra=ID_SCHEMA,
    ),
]


class OpenSessionPlace(Struct, frozen=True):
    """Where a page of open sessions ended: the last one's instant of opening, and its strand as a member."""

    opened_at_ms: int
    member: bytes


class DuePlace(Struct, frozen=True):
    """Where a page of open sessions by deadline ended: the instant at which the last one is due, and its strand as a member."""

    due_at_ms: int
    member: bytes


class LiveFilter(BaseModel):
    """Which open sessions."""

    bot: Annotated[
        list[SlugText] | None,
        Field(max_length=MOST_VALUES, description="Only of this bot; repeated: any of them.", examples=[["shop"]]),
    ] = None


class LiveQuery(LiveFilter, PageQuery):
    """Which open sessions, and which page of their list."""

    channel: Annotated[SlugText | None, Field(description="Only on this channel.", examples=["web"])] = None


class EventsQuery(LiveFilter):
    """Which events, and from where on."""

    after: _EventId = None


@router.get("/bots/{bot}/live", **answers(LivePage))
async def list_live(
    bot: BotPath, config: ConfigDep, live: LiveDep, sessions: SessionsDep, *, _: Reading, asked: Paged
) -> JsonResponse:
    """Open sessions, the longest open first. One that closes while the list is walked may be left out."""
    known_bot(config, bot)
    page = Page(asked, of=["live", bot], place=OpenSessionPlace)
    after = None if page.after is None else (page.after.opened_at_ms, page.after.member)
    (rows, last), count = await asyncio.gather(sessions.live_page(bot, after=after, limit=page.limit), live.count(bot))
    shown, following = page.fit(
        rows,
        lambda row: OpenSessionPlace(*row[0]),
        lambda row: view(row[1]),
        last=None if last is None else OpenSessionPlace(*last),
    )
    return JsonResponse({"open": count, "sessions": shown, "next": following})


@router.get("/live", **answers(AllLivePage))
async def list_all_live(
    config: ConfigDep,
    pipe: PipeDep,
    *,
    settings: SettingsDep,
    sessions: SessionsDep,
    events: LiveEventsDep,
    principal: Reading,
    asked: Annotated[LiveQuery, Query()],
) -> JsonResponse:
    """Open sessions of all bots that the key covers, the next due first, and how many there are by bot and channel.

    A session is due at its reminder, and then at its deadline. Sandbox bots have a time of their own: name them with `bot`.
    """
    covers, sandboxes = _covered(config, principal, asked)
    page = Page(asked, of=["live", sorted(asked.bot or ()), asked.channel], place=DuePlace)
    # Read first: events that happen while the list is read are sent once more, and none is missed.
    last_event_id = id_of(await events.now())

    def wanted(one: LiveSession) -> bool:
        return asked.channel in {None, one.session.channel}

    after = None if page.after is None else (page.after.due_at_ms, page.after.member)
    (rows, last), counts = await asyncio.gather(
        sessions.upcoming(UpcomingChoice(sandboxes, covers, wanted), after=after, limit=page.limit),
        open_by_channel(pipe, shards=settings.shards),
    )
    by_channel = [
        {"bot": bot, "channel": channel, "open": count}
        for (bot, channel), count in counts.items()
        if covers(bot) and asked.channel in {None, channel}
    ]
    shown, following = page.fit(
        rows,
        lambda row: DuePlace(*row[0]),
        lambda row: view(row[1]),
        last=None if last is None else DuePlace(*last),
    )
    return JsonResponse(
        {
            "open": sum(place["open"] for place in by_channel),
            "by_channel": by_channel,
            "sessions": shown,
            "next": following,
            "last_event_id": last_event_id,
        }
    )


_EVENT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "The fields of one event of the stream.",
    "properties": {
        "id": {"type": "string", "description": "Where it stands: go on after it.", "examples": ["1795341600000-0-0-0"]},
        "event": {"type": "string", "description": "What happened.", "examples": ["session.opened"]},
        "data": {"type": "string", "description": "The session or what else it is about, as JSON.", "examples": ["{}"]},
        "retry": {"type": "integer", "description": "Before a client reconnects, in ms.", "examples": [2000]},
    },
}
_STREAM_SCHEMA: dict[str, Any] = {"type": "string", "description": "The stream, to a client that reads no events of it."}
_STREAM: dict[str, Any] = {
    # With its own class FastAPI encodes each event for each client, and has a task a client to ping.
    "response_class": StreamingResponse,
    "response_model": None,
    "responses": {
        200: {
            "description": "Events, as they happen: `session.opened`, `session.reminder`, `session.closure_message`, "
            "`session.closed`, `session.updated`; `reset` where events were missed.",
            "content": {"text/event-stream": {"schema": {"anyOf": [_STREAM_SCHEMA, _EVENT_SCHEMA]}}},
        }
    },
}


@router.get("/live/events", **_STREAM)
async def follow_live(
    request: Request,
    config: ConfigDep,
    events: LiveEventsDep,
    *,
    principal: Reading,
    asked: Annotated[EventsQuery, Query()],
    last_event_id: Annotated[
        str | None,
        WithJsonSchema(_HEADER_SCHEMA),
        Header(description="Id of the last event that the client got."),
    ] = None,
) -> EventSourceResponse:
    """Server-sent events of the bots that the key covers. A client that reconnects within two minutes misses none.

    With `Last-Event-ID` or `after` it goes on after that event, else from now on. At `reset` load `GET /v1/live` anew.
    """
    covers, _ = _covered(config, principal, asked)
    after = _position(last_event_id or asked.after)
    owner = principal.key.id
    events.check_room(owner)
    stream = events.follow(after, covers=covers, goes_on=lambda: _goes_on(request), owner=owner)
    return EventSourceResponse(stream, headers={"cache-control": "no-store", "x-accel-buffering": "no"})


def _covered(config: ConfigReplica, principal: Principal, asked: LiveFilter) -> tuple[Covers, list[str]]:
    """Whether a bot's sessions are asked for, and the sandbox bots among those that are named."""
    named = frozenset(asked.bot) if asked.bot else None
    bots = principal.bots_asked_for(config, named)
    sandboxes = [bot.id for bot in config.sandbox_bots() if named and bot.id in named]
    covers: Callable[[str], bool] = (lambda _: True) if bots is None else bots.__contains__
    return covers, sandboxes


def _position(text: str | None) -> Position | None:
    position = None if text is None else position_of(text)
    if text is not None and position is None:
        hint = "send the id of an event, unchanged, or none"
        raise Invalid("the event id is not valid", faults=(Fault("Last-Event-ID", "it is no id of an event", hint),))
    return position


def _goes_on(request: Request) -> bool:
    """Not once the process stops, and not with a key that was revoked or has expired."""
    if getattr(request.app.state, "draining", False):
        return False
    try:
        principal_of_request(request)
    except AdjournError:
        return False
    return True
