"""Sessions: lists of open and of closed ones; one with its messages and its explanation; closing one; sums over closed ones."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field, create_model

from app.api.auth import (
    Administering,
    ClosingSessions,
    ConfigDep,
    Principal,
    ReadEngineDep,
    Reading,
    SessionsDep,
    found,
    id_of,
    known_bot,
)
from app.api.fields import BotPath, GivenInstant, IdText, SlugText, object_of
from app.api.paging import LARGEST_PAGE, LongPageQuery, Page, Paged, PageQuery
from app.api.responses import MOST_VALUES, JsonResponse, answers, asked, asked_as
from app.api.session_views import CloserDep, Explanation, MessagePage, SessionPage, SessionView, UnassignedPage
from app.archive.late_entries import UnassignedPlace, unassigned_view
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionOrder, SessionPlace, place_of
from app.archive.summary import summarise
from app.domain.entry import ID_PATTERN
from app.domain.instants import ms_of
from app.domain.records import Outcome, Reason, Trade
from app.domain.session_view import explain, message_view, public_fields
from app.queries.sessions import Sessions, view

router = APIRouter(prefix="/v1", tags=["sessions"])

METADATA_PARAMETER = {
    "name": "session_metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "Only those whose `session_metadata` has these values: `session_metadata.key=value` for each key.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}, "examples": [{"phone": "+5491122334455"}]},
}
"""FastAPI knows no query parameter that holds an object."""

_SessionPath = Annotated[str, Path(description="Id of the session.", json_schema_extra={"format": "uuid"})]
_MessagePath = Annotated[
    str,
    Path(min_length=1, max_length=256, pattern=ID_PATTERN, description="Id of the message, percent-encoded.", examples=["m1"]),
]
_User = Annotated[IdText | None, Query(description="Id of the message's user.", examples=["ann"])]
_OpenedFrom = Annotated[GivenInstant | None, Field(description="Only those opened at or after this instant.")]
_OpenedTo = Annotated[GivenInstant | None, Field(description="Only those opened before this instant.")]


_OPENAPI: dict[str, Any] = {"parameters": [METADATA_PARAMETER]}
_FILTERED = public_fields(SessionFilter)


class BotsQuery(BaseModel):
    """Of which bots."""

    bot: Annotated[
        list[SlugText] | None,
        Field(max_length=MOST_VALUES, description="Only of this bot; repeated: any of them.", examples=[["shop"]]),
    ] = None

    @property
    def bots(self) -> frozenset[str] | None:
        """The bots that it names; None: it names none."""
        return frozenset(self.bot) if self.bot else None


if TYPE_CHECKING:
    DescribedFilter = BotsQuery
else:
    DescribedFilter = create_model("DescribedFilter", __base__=BotsQuery, **asked(_FILTERED))


class FilterQuery(DescribedFilter):
    """Which closed sessions. An instant or a duration `…_from` is included, one `…_to` is not."""

    def filter(self, bots: frozenset[str] | None, *, metadata: dict[str, str] | None = None) -> SessionFilter:
        """The filter, among the bots that the key covers."""
        given = {name: _filtered(getattr(self, asked_as(name))) for name in _FILTERED}
        return SessionFilter(bots=bots, metadata=metadata, **given)


class SessionQuery(FilterQuery, PageQuery):
    """Which closed sessions, in which order, and which page of their list."""

    order: Annotated[
        SessionOrder, Field(description="By opening or by close, the earliest first; with `-` the latest first.")
    ] = "-opened_at"


class SummaryQuery(BaseModel):
    """Which closed sessions. An instant `…_from` is included, one `…_to` is not."""

    channel: Annotated[SlugText | None, Field(description="Only on this channel.", examples=["web"])] = None
    opened_from: _OpenedFrom = None
    opened_to: _OpenedTo = None
    developers: Annotated[bool, Field(description="Add sessions in which a developer took part, too.")] = False

    def filter(self, bot: str) -> SessionFilter:
        return SessionFilter(
            bots=frozenset({bot}),
            channel=self.channel,
            developer=None if self.developers else False,
            opened_from_ms=_ms(self.opened_from),
            opened_to_ms=_ms(self.opened_to),
        )


class RatioView(BaseModel):
    """A fraction."""

    part: Annotated[int, Field(description="Numerator.", examples=[2])]
    whole: Annotated[int, Field(description="Denominator.", examples=[3])]
    percent: Annotated[
        int | None, Field(description="Whole percent, cut and not rounded; null if the denominator is 0.", examples=[66])
    ]


class ReadingsView(BaseModel):
    """Containment as four systems count it, each over its own choice of the sessions that count."""

    kore: Annotated[RatioView, Field(description="Not handed off to a human, of those in which the user took part.")]
    botanalytics: Annotated[RatioView, Field(description="Of trade `bot`, of all.")]
    reamaze: Annotated[RatioView, Field(description="Not escalated, of all.")]
    aivo: Annotated[RatioView, Field(description="Not handed off to a human, of all.")]


class SummaryView(BaseModel):
    """Sums over the closed sessions that count."""

    sessions: Annotated[int, Field(description="Sessions.", examples=[3])]
    not_counted: Annotated[int, Field(description="Sessions left out of all other sums (`requires_bot`).", examples=[0])]
    interactive: Annotated[int, Field(description="Sessions in which the user took part.", examples=[3])]
    billing_sessions: Annotated[int, Field(description="Billing sessions.", examples=[3])]
    interactions: Annotated[int, Field(description="Messages by user, bot and agents.", examples=[4])]
    active_ms: Annotated[
        int,
        Field(description="From opening to last entry that is no `activity`, of all together, in ms.", examples=[61000]),
    ]
    contained: Annotated[
        RatioView,
        Field(
            description="Of those in which the user took part: closed without escalation or hand-off, and not `abandoned`, "
            "`interrupted` or `dropped`."
        ),
    ]
    contained_of_all: Annotated[RatioView, Field(description="The same of all sessions that count.")]
    dropped: Annotated[
        int, Field(description="Drop-offs: closed by silence with the user's message last, unanswered.", examples=[0])
    ]
    readings: Annotated[ReadingsView, Field(description="Containment as other systems count it.")]
    by_outcome: Annotated[dict[Outcome, int], Field(description="Sessions by outcome.", examples=[{"completed": 2}])]
    by_reason: Annotated[dict[Reason, int], Field(description="Sessions by reason of the close.", examples=[{"inactivity": 2}])]
    by_trade: Annotated[dict[Trade, int], Field(description="Sessions by trade.", examples=[{"bot": 3}])]


@router.get("/sessions", openapi_extra=_OPENAPI, **answers(SessionPage))
async def list_sessions(
    request: Request,
    config: ConfigDep,
    sessions: SessionsDep,
    principal: Reading,
    *,
    asked: Annotated[SessionQuery, Query()],
) -> JsonResponse:
    """Closed sessions by filter, of the bots that the key covers. Open ones: `GET /v1/live`.

    A session is in one of the two lists at every instant: in this one from its close on, before it is archived too.
    """
    bots = principal.bots_asked_for(config, asked.bots)
    wanted = asked.filter(bots, metadata=object_of(request, "session_metadata"))
    page = Page(asked, of=["sessions", asked.order, wanted], place=SessionPlace)
    rows = await sessions.page(wanted, order=asked.order, after=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda one: place_of(one.session, asked.order), view)
    return JsonResponse({"sessions": shown, "next": following})


@router.get("/sessions/{session_id}", **answers(SessionView))
async def read_session(session_id: _SessionPath, sessions: SessionsDep, principal: Reading) -> JsonResponse:
    """One session, open or closed."""
    return JsonResponse(view(await session_of(sessions, principal, session_id)))


@router.get("/sessions/{session_id}/messages", **answers(MessagePage))
async def list_messages(
    session_id: _SessionPath, sessions: SessionsDep, principal: Reading, asked: Annotated[LongPageQuery, Query()]
) -> JsonResponse:
    """A session's messages in order."""
    session = (await session_of(sessions, principal, session_id)).session
    page = Page(asked, of=["messages", session.id], place=int)
    stored = await sessions.messages(session, after=page.after or 0, limit=page.probe, most_bytes=LARGEST_PAGE)
    shown, following = page.fit(stored, lambda message: message.sequence, message_view)
    return JsonResponse({"messages": shown, "next": following})


@router.get("/sessions/{session_id}/explanation", **answers(Explanation))
async def explain_session(session_id: _SessionPath, sessions: SessionsDep, principal: Reading) -> JsonResponse:
    """Which entry opened it and by which rule, what moved its deadline, what closed it, under which policy version."""
    one = await session_of(sessions, principal, session_id)
    return JsonResponse(explain(one.strand, one.session, await sessions.messages_to_explain(one.session)))


@router.get("/bots/{bot}/messages/{message_id:path}/session", **answers(SessionView))
async def find_message(
    principal: Reading, bot: BotPath, message_id: _MessagePath, *, config: ConfigDep, sessions: SessionsDep, user_id: _User = None
) -> JsonResponse:
    """The session that has a message of this id. With `user_id` an open session is found at less cost."""
    known_bot(config, bot)
    one = await sessions.find_by_message(bot, message_id, user=user_id)
    return JsonResponse(view(found(one, "message", message_id, seen=lambda one: principal.covers(one.strand.bot))))


@router.get("/bots/{bot}/unassigned-entries", **answers(UnassignedPage))
async def list_unassigned(
    _: Administering, bot: BotPath, asked: Paged, *, config: ConfigDep, sessions: SessionsDep
) -> JsonResponse:
    """Entries that were accepted and belong to no session, the latest first; the last 1,000 of a bot are kept."""
    known_bot(config, bot)
    page = Page(asked, of=["unassigned", bot], place=UnassignedPlace)
    rows = await sessions.unassigned(bot, after=page.after, limit=page.probe, most_bytes=LARGEST_PAGE)
    entries, following = page.fit(rows, lambda row: UnassignedPlace(ms_of(row.received_at), str(row.id)), unassigned_view)
    return JsonResponse({"entries": entries, "next": following})


@router.post("/sessions/{session_id}/close", **answers(SessionView))
async def close_session(
    session_id: _SessionPath, sessions: SessionsDep, closer: CloserDep, principal: ClosingSessions
) -> JsonResponse:
    """Close an open session, reason `api`. A closed one stays as it is; the answer is the session either way."""
    one = await session_of(sessions, principal, session_id)
    if one.session.closed_at_ms is None:
        await closer.close(principal, [one])
        one = await session_of(sessions, principal, session_id)
    return JsonResponse(view(one))


@router.get("/bots/{bot}/summary")
async def read_summary(
    bot: BotPath, config: ConfigDep, engine: ReadEngineDep, _: Reading, *, asked: Annotated[SummaryQuery, Query()]
) -> SummaryView:
    """A bot's closed sessions added up. Sessions of developers are left out unless `developers` is true."""
    known_bot(config, bot)
    return SummaryView.model_validate(await summarise(engine, asked.filter(bot)), from_attributes=True)


async def session_of(sessions: Sessions, principal: Principal, session_id: str) -> ArchivedSession:
    """A session of a bot that the key covers. Raise `NotFound`."""
    return found(await sessions.find(id_of("session", session_id), within=principal.key.bots), "session", session_id)


def _filtered(given: Any) -> Any:  # noqa: ANN401 - a value of any parameter
    if isinstance(given, list):
        return frozenset(given) or None
    return ms_of(given) if isinstance(given, datetime) else given


def _ms(at: GivenInstant | None) -> int | None:
    return None if at is None else ms_of(at)
