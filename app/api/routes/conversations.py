"""A conversation: its sessions, its variables and its dialog context.

A conversation's id may hold slashes (`:path`), so the end of the path distinguishes the routes. The route of one variable comes
first: a variable may be called `context`, while a conversation is hardly ever called `web:ann/variables`.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import (
    ClockDep,
    ClosingSessions,
    ConfigDep,
    Ingesting,
    LedgerDep,
    LiveDep,
    OwnTime,
    OwnTimeDep,
    Principal,
    Reading,
    SessionsDep,
    known_bot,
)
from app.api.fields import BotPath, ConversationPath, Instant, SlugText
from app.api.paging import Page, PageQuery
from app.api.responses import JsonResponse, answers
from app.api.session_views import ClosedSessions, CloserDep, SessionPage
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionPlace, place_of
from app.clock import Clock
from app.config.follower import ConfigReplica
from app.config.records import BotConfig
from app.domain.records import DeleteVariable, SetVariable, State
from app.domain.session_view import context_view, variables_view
from app.domain.strand import LONGEST_THREAD, Strand
from app.errors import NotFound
from app.live.ledger import Ledger
from app.live.view import LiveView
from app.queries.sessions import Sessions, view

router = APIRouter(prefix="/v1", tags=["conversations"])

_STRAND = "/bots/{bot}/conversations/{conversation_id:path}"
_Thread = Annotated[
    str,
    Query(
        max_length=LONGEST_THREAD,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description=(
            "The `thread` of its sessions: the client's session (method `client`) or the help window and, in a conversation that "
            "the bot names, the channel, unless it is `web`. Left out otherwise."
        ),
        examples=["window-1"],
    ),
]
_Name = Annotated[str, Path(description="Name of the variable.", examples=["order"])]
_VALUE = "Any JSON value."
_TTL = 366 * 86_400


class ConversationQuery(PageQuery):
    """Which sessions of the conversation."""

    bot: Annotated[
        SlugText | None, Field(description="Only of this bot; of every bot that the key covers if left out.", examples=["shop"])
    ] = None


class NewValue(BaseModel):
    """A value to store."""

    model_config = ConfigDict(extra="forbid")

    value: Annotated[Any, Field(description="Any JSON value of up to 8 KB.", examples=[{"number": 4711}])]
    ttl_s: Annotated[
        float | None,
        Field(
            gt=0,
            le=_TTL,
            description="How long to keep it, in s. Left out: a conversation's until the session closes, a user's 366 days.",
            examples=[3600],
        ),
    ] = None

    @property
    def ttl_ms(self) -> int | None:
        return None if self.ttl_s is None else max(1, round(self.ttl_s * 1000))


class VariableValue(BaseModel):
    """A variable's value."""

    value: Annotated[Any, Field(description=_VALUE, examples=[{"number": 4711}])]
    expires_at: Annotated[Instant | None, Field(description="When it ends; null: with the session.")]


class VariableView(VariableValue):
    """A variable."""

    name: Annotated[str, Field(description="Name of the variable.", examples=["order"])]


class VariableMap(BaseModel):
    """A conversation's variables."""

    variables: Annotated[dict[str, VariableValue], Field(description="By name.", examples=[{}])]


class DialogContext(BaseModel):
    """The dialog of a conversation, as the bot's entries described it."""

    context: Annotated[dict[str, Any] | None, Field(description="Topic and details.", examples=[{"topic": "order"}])]
    tags: Annotated[list[str], Field(description="The current set of tags.", examples=[["vip"]])]
    historic_tags: Annotated[list[Any], Field(description="The sets of tags before, the latest last.", examples=[["new"]])]
    tones: Annotated[dict[str, float], Field(description="Level by tone.", examples=[{"angry": 0.7}])]


class LiveStrand:
    """The live state of one strand, and commands to it."""

    def __init__(
        self, strand: Strand, bot: BotConfig, *, live: LiveView, ledger: Ledger, clock: Clock, own_time: OwnTime
    ) -> None:
        self._strand = strand
        self._bot = bot
        self._live = live
        self._ledger = ledger
        self._clock = clock
        self._own_time = own_time

    async def state(self) -> State:
        return await self._live.state(self._strand)

    async def variables(self) -> dict[str, Any]:
        """The variables that have not expired, by name."""
        at_ms = await self._own_time(self._bot)
        return variables_view(await self.state(), self._clock.now_ms() if at_ms is None else at_ms)

    async def submit(self, command: SetVariable | DeleteVariable) -> None:
        await self._ledger.submit(self._strand, command, at_ms=await self._own_time(self._bot))


async def _strand(
    bot: BotPath,
    conversation_id: ConversationPath,
    *,
    config: ConfigDep,
    live: LiveDep,
    ledger: LedgerDep,
    clock: ClockDep,
    own_time: OwnTimeDep,
    thread: _Thread = "",
) -> LiveStrand:
    strand = Strand(bot, conversation_id, thread)
    return LiveStrand(strand, known_bot(config, bot), live=live, ledger=ledger, clock=clock, own_time=own_time)


StrandDep = Annotated[LiveStrand, Depends(_strand)]


@router.get("/conversations/{conversation_id:path}/sessions", **answers(SessionPage))
async def list_conversation(
    conversation_id: ConversationPath,
    asked: Annotated[ConversationQuery, Query()],
    *,
    config: ConfigDep,
    sessions: SessionsDep,
    principal: Reading,
) -> JsonResponse:
    """The conversation's sessions, the latest opened first; on the first page, open ones come on top of `limit`."""
    bots = principal.bots_asked_for(config, None if asked.bot is None else frozenset({asked.bot}))
    wanted = SessionFilter(bots=bots, conversation_id=conversation_id)
    page = Page(asked, of=["conversation", wanted], place=SessionPlace)
    live = [] if page.after is not None else await _live(config, sessions, principal, bot=asked.bot, conversation=conversation_id)
    rows = await sessions.page(wanted, after=page.after, limit=page.probe)
    archived = {one.session.id for one in rows}
    shown, following = page.fit(rows, lambda one: place_of(one.session, "-opened_at"), view)
    still_open = [one for one in live if one.session.id not in archived]
    return JsonResponse({"sessions": [*map(view, still_open), *shown], "next": following})


@router.post(_STRAND + "/close", **answers(ClosedSessions))
async def close_conversation(
    principal: ClosingSessions,
    bot: BotPath,
    conversation_id: ConversationPath,
    *,
    config: ConfigDep,
    sessions: SessionsDep,
    closer: CloserDep,
) -> JsonResponse:
    """Close all open sessions of a conversation, reason `api`."""
    known_bot(config, bot)
    closed = await closer.close(principal, await sessions.open_in(bot, conversation_id))
    return JsonResponse({"sessions": [view(one) for one in closed]})


# Each route asks for the key before the strand, so that a key without the scope learns nothing.
@router.get(_STRAND + "/variables/{name}", **answers(VariableView))
async def read_variable(_: Reading, strand: StrandDep, name: _Name) -> JsonResponse:
    """One variable."""
    value = (await strand.variables()).get(name)
    if value is None:
        raise NotFound(f"there is no variable {name!r} in this conversation", hint="it may have ended with its session")
    return JsonResponse({"name": name, **value})


@router.get(_STRAND + "/context", **answers(DialogContext))
async def read_context(_: Reading, strand: StrandDep) -> JsonResponse:
    """Topic and details of the dialog, its current and historic tags, its tones."""
    return JsonResponse(context_view(await strand.state()))


@router.get(_STRAND + "/variables", **answers(VariableMap))
async def list_variables(_: Reading, strand: StrandDep) -> JsonResponse:
    """All variables that have not expired, by name."""
    return JsonResponse({"variables": await strand.variables()})


@router.put(_STRAND + "/variables/{name}", **answers(VariableView))
async def set_variable(_: Ingesting, strand: StrandDep, name: _Name, body: NewValue) -> JsonResponse:
    """Set or replace a variable. Its time to live counts from now."""
    await strand.submit(SetVariable(name, body.value, body.ttl_ms))
    value = (await strand.variables()).get(name, {"value": body.value, "expires_at": None})
    return JsonResponse({"name": name, **value})


@router.delete(_STRAND + "/variables/{name}", status_code=204)
async def delete_variable(_: Ingesting, strand: StrandDep, name: _Name) -> None:
    """Delete a variable; no error if there is none of this name."""
    await strand.submit(DeleteVariable(name))


async def _live(
    config: ConfigReplica, sessions: Sessions, principal: Principal, *, bot: str | None, conversation: str
) -> list[ArchivedSession]:
    names = [bot] if bot is not None else [known.id for known in config.bots() if principal.covers(known.id)]
    found = await asyncio.gather(*(sessions.open_in(name, conversation) for name in names))
    every = [one for of_bot in found for one in of_bot]
    return sorted(every, key=lambda one: (one.session.opened_at_ms, one.session.id), reverse=True)
