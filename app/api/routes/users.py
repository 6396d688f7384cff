"""A user of a bot, over all channels: sessions, and the variables that all conversations of the user share.

A user's id may hold slashes (`:path`), so the end of the path distinguishes the routes.
"""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Path

from app.api.auth import (
    ClockDep,
    ClosingSessions,
    ConfigDep,
    Ingesting,
    OwnTime,
    OwnTimeDep,
    Reading,
    SessionsDep,
    UserVariablesDep,
    known_bot,
)
from app.api.fields import BotPath, UserPath
from app.api.paging import Page, Paged
from app.api.responses import JsonResponse, answers
from app.api.routes.conversations import NewValue, VariableMap, VariableView
from app.api.session_views import ClosedSessions, CloserDep, SessionPage
from app.archive.session_reads import SessionFilter, SessionPlace, place_of
from app.clock import Clock
from app.config.records import BotConfig
from app.domain.records import SetVariable, Variable
from app.domain.session_view import variable_view
from app.errors import NotFound
from app.live.users import UserVariables
from app.queries.sessions import view

router = APIRouter(prefix="/v1/bots/{bot}/users/{user_id:path}", tags=["users"])

_Name = Annotated[str, Path(description="Name of the variable.", examples=["plan"])]


class UserStore:
    """One user's variables."""

    def __init__(self, bot: BotConfig, user_id: str, *, stored: UserVariables, clock: Clock, own_time: OwnTime) -> None:
        self._bot = bot
        self._user = user_id
        self._stored = stored
        self._clock = clock
        self._own_time = own_time

    async def read(self) -> Mapping[str, Variable]:
        """The variables that have not expired, by name."""
        return await self._stored.read(self._bot.id, self._user, now_ms=await self._now_ms())

    async def put(self, command: SetVariable) -> Variable:
        return await self._stored.put(self._bot.id, self._user, command, now_ms=await self._now_ms())

    async def delete(self, name: str) -> None:
        await self._stored.delete(self._bot.id, self._user, name)

    async def _now_ms(self) -> int:
        own_ms = await self._own_time(self._bot)
        return self._clock.now_ms() if own_ms is None else own_ms


async def _store(
    bot: BotPath, user_id: UserPath, *, config: ConfigDep, stored: UserVariablesDep, clock: ClockDep, own_time: OwnTimeDep
) -> UserStore:
    return UserStore(known_bot(config, bot), user_id, stored=stored, clock=clock, own_time=own_time)


StoreDep = Annotated[UserStore, Depends(_store)]


# Each route asks for the key before the store, so that a key without the scope learns nothing.
@router.get("/variables/{name}", **answers(VariableView))
async def read_user_variable(_: Reading, store: StoreDep, name: _Name) -> JsonResponse:
    """One variable of a user."""
    variable = (await store.read()).get(name)
    if variable is None:
        raise NotFound(f"there is no variable {name[:128]!r} of this user", hint="it may have expired")
    return JsonResponse({"name": name, **variable_view(variable)})


@router.get("/variables", **answers(VariableMap))
async def list_user_variables(_: Reading, store: StoreDep) -> JsonResponse:
    """All variables of a user that have not expired, by name."""
    stored = await store.read()
    return JsonResponse({"variables": {name: variable_view(variable) for name, variable in stored.items()}})


@router.put("/variables/{name}", **answers(VariableView))
async def set_user_variable(_: Ingesting, store: StoreDep, name: _Name, body: NewValue) -> JsonResponse:
    """Set or replace a variable that all conversations of the user share. Without `ttl_s` it is kept for 366 days."""
    variable = await store.put(SetVariable(name, body.value, body.ttl_ms))
    return JsonResponse({"name": name, **variable_view(variable)})


@router.delete("/variables/{name}", status_code=204)
async def delete_user_variable(_: Ingesting, store: StoreDep, name: _Name) -> None:
    """Delete a variable; no error if there is none of this name."""
    await store.delete(name)


# After the variables, one of which may be named `sessions` or `close`.
@router.get("/sessions", **answers(SessionPage))
async def list_user_sessions(
    _: Reading, bot: BotPath, user_id: UserPath, asked: Paged, *, config: ConfigDep, sessions: SessionsDep
) -> JsonResponse:
    """A user's sessions over all channels, the latest opened first; on the first page, open ones come on top of `limit`."""
    known_bot(config, bot)
    wanted = SessionFilter(bots=frozenset({bot}), user_id=user_id)
    page = Page(asked, of=["user", wanted], place=SessionPlace)
    live = [] if page.after is not None else await sessions.open_of_user(bot, user_id)
    rows = await sessions.page(wanted, after=page.after, limit=page.probe)
    archived = {one.session.id for one in rows}
    shown, following = page.fit(rows, lambda one: place_of(one.session, "-opened_at"), view)
    still_open = [one for one in reversed(live) if one.session.id not in archived]
    return JsonResponse({"sessions": [*map(view, still_open), *shown], "next": following})


@router.post("/close", **answers(ClosedSessions))
async def close_user(
    principal: ClosingSessions, bot: BotPath, user_id: UserPath, *, config: ConfigDep, sessions: SessionsDep, closer: CloserDep
) -> JsonResponse:
    """Close all open sessions of a user on all channels, reason `api`."""
    known_bot(config, bot)
    closed = await closer.close(principal, await sessions.open_of_user(bot, user_id))
    return JsonResponse({"sessions": [view(one) for one in closed]})
