"""Sessions: lists of open and of closed ones; one with its messages and its explanation; closing one; sums over closed ones.

The domain makes a session's JSON, in the one shape that webhooks have too. The models here describe that shape for the OpenAPI
document, and a test holds them equal.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import Closing, Principal, Reading, found, id_of, known_bot
from app.api.dependencies import ConfigDep, EngineDep, LedgerDep, LiveDep, OwnTimeDep, SessionsDep
from app.api.fields import BotPath, ConversationText, GivenInstant, Id, Instant, Slug, Text
from app.api.paging import LongPageQuery, Next, Page, Paged, PageQuery
from app.api.responses import JsonResponse, answers
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionPlace
from app.archive.summary import summarise
from app.domain.entry import EntryType, Role
from app.domain.explanation import explain
from app.domain.instants import ms_of
from app.domain.records import Close, Outcome, Reason, Trade
from app.domain.session_view import message_view
from app.queries.sessions import Sessions, view

router = APIRouter(prefix="/v1", tags=["sessions"])

_SessionPath = Annotated[str, Path(description="Id of the session.", json_schema_extra={"format": "uuid"})]
_OpenedFrom = Annotated[GivenInstant | None, Field(description="Only those opened at or after this instant.")]
_OpenedTo = Annotated[GivenInstant | None, Field(description="Only those opened before this instant.")]


class FilterQuery(BaseModel):
    """Which closed sessions. An instant `…_from` is included, one `…_to` is not."""

    bot: Annotated[Slug | None, Field(description="Only of this bot.", examples=["shop"])] = None
    user_id: Annotated[Text | None, Field(description="Only of this user.", examples=["ann"])] = None
    channel: Annotated[Slug | None, Field(description="Only on this channel.", examples=["web"])] = None
    conversation_id: Annotated[ConversationText | None, Field(description="Only of this conversation.", examples=["web:ann"])] = (
        None
    )
    reason: Annotated[Reason | None, Field(description="Only those closed for this reason.")] = None
    interactive: Annotated[bool | None, Field(description="Only those in which the user took part, or did not.")] = None
    developer: Annotated[bool | None, Field(description="Only those in which a developer took part, or did not.")] = None
    opened_from: _OpenedFrom = None
    opened_to: _OpenedTo = None
    closed_from: Annotated[GivenInstant | None, Field(description="Only those closed at or after this instant.")] = None
    closed_to: Annotated[GivenInstant | None, Field(description="Only those closed before this instant.")] = None

    def filter(self, bots: frozenset[str] | None) -> SessionFilter:
        """The filter, among the bots that the key covers."""
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


class SessionQuery(FilterQuery, PageQuery):
    """Which closed sessions, and which page of their list."""


class SummaryQuery(BaseModel):
    """Which closed sessions. An instant `…_from` is included, one `…_to` is not."""

    channel: Annotated[Slug | None, Field(description="Only on this channel.", examples=["web"])] = None
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


class CountByRole(BaseModel):
    """Entries by role."""

    user: Annotated[int, Field(description="Entries by the user.", examples=[1])]
    bot: Annotated[int, Field(description="Entries by the bot.", examples=[1])]
    agent: Annotated[int, Field(description="Entries by human agents.", examples=[0])]
    system: Annotated[int, Field(description="Entries by the system.", examples=[0])]


class InstantByRole(BaseModel):
    """Instants by role; null for a role that took no part."""

    user: Annotated[Instant | None, Field(description="The user's.")]
    bot: Annotated[Instant | None, Field(description="The bot's.")]
    agent: Annotated[Instant | None, Field(description="The human agents'.")]
    system: Annotated[Instant | None, Field(description="The system's.")]


class SessionSnapshot(BaseModel):
    """A session as it was at the instant of an event."""

    id: Annotated[Id, Field(description="Id of the session.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    conversation_id: Annotated[str, Field(description="Id of the conversation.", examples=["web:ann"])]
    thread: Annotated[
        str | None, Field(description="The client's session (method `client`) or the help window.", examples=["window-1"])
    ]
    user_id: Annotated[str, Field(description="Id of the user.", examples=["ann"])]
    channel: Annotated[str, Field(description="The channel.", examples=["web"])]
    status: Annotated[Literal["open", "closed"], Field(description="Whether it is open.")]
    opened_at: Annotated[Instant, Field(description="When it opened.")]
    opened_by: Annotated[str, Field(description="Id of the message that opened it.", examples=["m1"])]
    opening_rule: Annotated[str, Field(description="The rule by which it opened.", examples=["B04"])]
    previous_session_id: Annotated[Id | None, Field(description="Id of the conversation's session before.")]
    closes_at: Annotated[Instant | None, Field(description="When it closes if nothing more comes; null if it is closed.")]
    closed_at: Annotated[Instant | None, Field(description="When it closed.")]
    reason: Annotated[Reason | None, Field(description="Why it closed.")]
    closing_rule: Annotated[str | None, Field(description="The rule by which it closed.", examples=["K07"])]
    closed_by: Annotated[str | None, Field(description="Id of the message, or name of the key, that closed it.", examples=["m7"])]
    policy_version: Annotated[int, Field(description="Version of the policy that its deadline was set under.", examples=[2])]
    interactive: Annotated[bool, Field(description="Whether the user took part.")]
    developer: Annotated[bool, Field(description="Whether a developer took part: never billed.")]
    counted: Annotated[bool, Field(description="Whether it counts in statistics (`requires_bot`).")]
    trade: Annotated[Trade, Field(description="Who takes part: the bot, or a human agent assisted by it.")]
    outcome: Annotated[Outcome | None, Field(description="How it came out; null while it is open.")]
    contained: Annotated[
        bool | None, Field(description="Whether it was closed without hand-off or escalation; null while it is open.")
    ]
    language: Annotated[str | None, Field(description="The last language that was reported.", examples=["en"])]
    intent: Annotated[str | None, Field(description="The last intent that was reported.", examples=["order.status"])]
    intents: Annotated[
        list[str],
        Field(description="The user's intents in order, without repeats in a row, the first 32.", examples=[["order.status"]]),
    ]
    tags: Annotated[list[str], Field(description="The last set of tags that was reported.", examples=[["vip"]])]
    entries: Annotated[int, Field(description="How many entries it has, late ones left out.", examples=[2])]
    entries_of: Annotated[CountByRole, Field(description="How many entries of each role.")]
    interactions: Annotated[int, Field(description="How many messages by user, bot and agents.", examples=[2])]
    billing_sessions: Annotated[int, Field(description="Started blocks with user activity.", examples=[1])]
    last_entry_at: Annotated[Instant, Field(description="When its last entry came.")]
    first_entry_at_of: Annotated[InstantByRole, Field(description="When the first entry of each role came.")]
    last_entry_at_of: Annotated[InstantByRole, Field(description="When the last entry of each role came.")]
    first_response_ms: Annotated[
        int | None, Field(description="From the user's first message to the first answer, in ms.", examples=[2000])
    ]
    handed_off_at: Annotated[Instant | None, Field(description="When it was handed off to a human.")]
    escalated_at: Annotated[Instant | None, Field(description="When it was escalated.")]
    resolved_at: Annotated[Instant | None, Field(description="When it was resolved.")]
    survey_sent_at: Annotated[Instant | None, Field(description="When a survey was sent.")]
    survey_answered_at: Annotated[Instant | None, Field(description="When the survey was answered.")]
    reminded_at: Annotated[Instant | None, Field(description="When the user was reminded.")]
    late_entries: Annotated[int, Field(description="Entries that came after the close, within 24 hours.", examples=[0])]
    active_ms: Annotated[
        int, Field(description="From the opening to the last entry that is no `activity`, in ms.", examples=[2000])
    ]
    idle_ms: Annotated[int | None, Field(description="From there to the close, in ms; null while it is open.", examples=[900000])]
    session_metadata: Annotated[
        dict[str, Any] | None,
        Field(description="The bot's own data, merged from its entries.", examples=[{"phone": "+5491122334455"}]),
    ]


class SessionView(SessionSnapshot):
    """A session, open or closed."""

    continuation_of: Annotated[
        Id | None,
        Field(description="Id of the archived session that these messages belong to: Redis had lost that it was closed."),
    ]


class MessageView(BaseModel):
    """A message: the entry as the bot reported it, its place and its instant."""

    # Fields of an entry that few entries have are there only if the entry had them.
    model_config = ConfigDict(extra="allow")

    message_id: Annotated[str, Field(description="Id of the message.", examples=["m1"])]
    sequence: Annotated[int, Field(description="Place in the session, from 1.", examples=[1])]
    received_at: Annotated[Instant, Field(description="When it was received: its instant for all rules.")]
    sent_at: Annotated[Instant | None, Field(description="When it was sent, as the bot reported it.")]
    role: Annotated[Role, Field(description="Who it comes from.")]
    type: Annotated[EntryType, Field(description="What it is.")]
    user_id: Annotated[str, Field(description="Id of the user.", examples=["ann"])]
    text: Annotated[str | None, Field(description="What was said.", examples=["Where is my order?"])]
    intent: Annotated[str | None, Field(description="The intent.", examples=["order.status"])]
    language: Annotated[str | None, Field(description="The language, as a BCP 47 tag.", examples=["en"])]
    tags: Annotated[list[str], Field(description="The tags.", examples=[["vip"]])]
    late: Annotated[bool, Field(description="Whether it came after the session had closed.")]


class SessionPage(BaseModel):
    """Sessions, in the order that was asked for."""

    sessions: Annotated[list[SessionView], Field(description="The sessions of this page.")]
    next: Next


class LivePage(BaseModel):
    """Open sessions, the longest open first."""

    open: Annotated[int, Field(description="How many are open in all.", examples=[2])]
    sessions: Annotated[list[SessionView], Field(description="The sessions of this page.")]
    next: Next


class MessagePage(BaseModel):
    """Messages in order."""

    messages: Annotated[list[MessageView], Field(description="The messages of this page.")]
    next: Next


class Cause(BaseModel):
    """An event in the life of a session, and its rule."""

    at: Annotated[Instant, Field(description="When it happened.")]
    rule: Annotated[str, Field(description="The rule.", examples=["B04"])]
    because: Annotated[str, Field(description="The rule in words.", examples=["the user said something"])]
    message_id: Annotated[str | None, Field(description="Id of the message that caused it, if one did.", examples=["m1"])]
    role: Annotated[Role | None, Field(description="Role of that message.")]
    type: Annotated[EntryType | None, Field(description="Type of that message.")]


class ReasonedCause(Cause):
    """The deadline or the close of a session."""

    reason: Annotated[Reason, Field(description="Why it closes, or closed.")]


class ExplanationData(BaseModel):
    """The explanation of a session, for programs."""

    session_id: Annotated[Id, Field(description="Id of the session.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    conversation_id: Annotated[str, Field(description="Id of the conversation.", examples=["web:ann"])]
    status: Annotated[Literal["open", "closed"], Field(description="Whether it is open.")]
    policy_version: Annotated[int, Field(description="Version of the policy that its deadline was set under.", examples=[2])]
    previous_session_id: Annotated[Id | None, Field(description="Id of the conversation's session before.")]
    opened: Annotated[Cause, Field(description="What opened it.")]
    deadline: Annotated[ReasonedCause, Field(description="What set its deadline last.")]
    reminded_at: Annotated[Instant | None, Field(description="When the user was reminded.")]
    closed: Annotated[ReasonedCause | None, Field(description="What closed it; null while it is open.")]


class Explanation(BaseModel):
    """Why a session opened, was to close and closed."""

    words: Annotated[list[str], Field(description="Sentences, in the order of its life.", examples=[["It is open."]])]
    data: Annotated[ExplanationData, Field(description="The same for programs.")]


class RatioView(BaseModel):
    """A fraction."""

    part: Annotated[int, Field(description="Numerator.", examples=[2])]
    whole: Annotated[int, Field(description="Denominator.", examples=[3])]
    percent: Annotated[
        int | None, Field(description="Whole percent, cut and not rounded; null if the denominator is 0.", examples=[66])
    ]


class SummaryView(BaseModel):
    """Sums over the closed sessions that count."""

    sessions: Annotated[int, Field(description="Sessions.", examples=[3])]
    not_counted: Annotated[int, Field(description="Sessions left out of all other sums (`requires_bot`).", examples=[0])]
    interactive: Annotated[int, Field(description="Sessions in which the user took part.", examples=[3])]
    billing_sessions: Annotated[int, Field(description="Billing sessions.", examples=[3])]
    interactions: Annotated[int, Field(description="Messages by user, bot and agents.", examples=[4])]
    contained: Annotated[RatioView, Field(description="Sessions closed without escalation or hand-off.")]
    by_outcome: Annotated[dict[Outcome, int], Field(description="Sessions by outcome.", examples=[{"completed": 2}])]
    by_reason: Annotated[dict[Reason, int], Field(description="Sessions by reason of the close.", examples=[{"inactivity": 2}])]
    by_trade: Annotated[dict[Trade, int], Field(description="Sessions by trade.", examples=[{"bot": 3}])]


class OpenSessionPlace(Struct, frozen=True):
    """Where a page of open sessions ended: the last one's instant of opening, and its strand as a member."""

    opened_at_ms: int
    member: bytes


@router.get("/sessions", **answers(SessionPage))
async def list_sessions(
    config: ConfigDep, sessions: SessionsDep, principal: Reading, asked: Annotated[SessionQuery, Query()]
) -> JsonResponse:
    """Closed sessions, the latest opened first, of the bots that the key covers. Open ones: `GET /v1/bots/{bot}/live`."""
    wanted = asked.filter(principal.bots_asked_for(config, None if asked.bot is None else frozenset({asked.bot})))
    page = Page(asked, of=["sessions", wanted], place=SessionPlace)
    shown, last = await sessions.page(wanted, after=page.after, limit=page.limit)
    return JsonResponse({"sessions": [view(one) for one in shown], "next": page.next(last)})


@router.get("/bots/{bot}/live", **answers(LivePage))
async def list_live(
    bot: BotPath, config: ConfigDep, live: LiveDep, sessions: SessionsDep, *, _: Reading, asked: Paged
) -> JsonResponse:
    """Open sessions, the longest open first. One that closes while the list is walked may be left out."""
    known_bot(config, bot)
    page = Page(asked, of=["live", bot], place=OpenSessionPlace)
    after = None if page.after is None else (page.after.opened_at_ms, page.after.member)
    (shown, last), count = await asyncio.gather(sessions.live_page(bot, after=after, limit=page.limit), live.count(bot))
    following = page.next(None if last is None else OpenSessionPlace(*last))
    return JsonResponse({"open": count, "sessions": [view(one) for one in shown], "next": following})


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
    stored = await sessions.messages(session, after=page.after or 0, limit=page.probe)
    shown, following = page.cut(stored, lambda message: message.sequence)
    return JsonResponse({"messages": [message_view(message) for message in shown], "next": following})


@router.get("/sessions/{session_id}/explanation", **answers(Explanation))
async def explain_session(session_id: _SessionPath, sessions: SessionsDep, principal: Reading) -> JsonResponse:
    """Which entry opened it and by which rule, what moved its deadline, what closed it, under which policy version."""
    one = await session_of(sessions, principal, session_id)
    return JsonResponse(explain(one.strand, one.session, await sessions.messages_to_explain(one.session)))


@router.post("/sessions/{session_id}/close", **answers(SessionView))
async def close_session(
    session_id: _SessionPath,
    config: ConfigDep,
    sessions: SessionsDep,
    ledger: LedgerDep,
    *,
    own_time: OwnTimeDep,
    principal: Closing,
) -> JsonResponse:
    """Close an open session, reason `api`. A closed one stays as it is; the answer is the session either way."""
    one = await session_of(sessions, principal, session_id)
    bot = config.bot_or_deleted(one.strand.bot)
    if one.session.closed_at_ms is None and bot is not None:
        await ledger.submit(one.strand, Close(one.session.id), at_ms=await own_time(bot))
        one = await session_of(sessions, principal, session_id)
    return JsonResponse(view(one))


@router.get("/bots/{bot}/summary")
async def read_summary(
    bot: BotPath, config: ConfigDep, engine: EngineDep, _: Reading, *, asked: Annotated[SummaryQuery, Query()]
) -> SummaryView:
    """A bot's closed sessions added up. Sessions of developers are left out unless `developers` is true."""
    known_bot(config, bot)
    async with engine.connect() as conn:
        return SummaryView.model_validate(await summarise(conn, asked.filter(bot)), from_attributes=True)


async def session_of(sessions: Sessions, principal: Principal, session_id: str) -> ArchivedSession:
    """A session of a bot that the key covers. Raise `NotFound`."""
    one = await sessions.find(id_of("session", session_id))
    return found(one, "session", session_id, seen=lambda one: principal.covers(one.strand.bot))


def _ms(at: GivenInstant | None) -> int | None:
    return None if at is None else ms_of(at)
