"""API keys and what a route may use: the principal of a request, what its scopes and bots let it see, and parts of the resources.

A key that is limited to some bots gets 404 for things of other bots, in the same words as for things that do not exist. A
missing scope is refused before any look-up, so that it reveals nothing either. Of a process's resources each route names only
the parts that it uses.
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal, TypeVar, cast
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.errors import MethodNotAllowed
from app.api.fields import check_parameters
from app.archive.audit import Actor
from app.clock import Clock
from app.closing.sweep import Sweep
from app.config.change import ConfigChange
from app.config.follower import ConfigReplica
from app.config.records import SIGNED_IN, BotConfig, KeyConfig
from app.domain.entry import LONGEST_SLUG, SLUG_PATTERN
from app.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from app.ids import is_mistyped, key_digest
from app.live.ledger import Ledger
from app.live.pipe import Pipe
from app.live.sandbox import SandboxClocks
from app.live.users import UserVariables
from app.live.view import LiveView
from app.queries.live_events import LiveEvents
from app.queries.sessions import Sessions
from app.resources import Resources
from app.settings import Settings
from app.shares import Shares

KeyScope = Literal["ingest", "read", "admin"]
Thing = TypeVar("Thing")

ADMIN_MAX_AGE_MS = 5_000
_BEARER = "bearer"
_BOT = re.compile(SLUG_PATTERN)
_HINT = "send `Authorization: Bearer adj_…`"
_LONGEST_NAME = 64


class Principal(Struct, frozen=True):
    """The key that a request came with."""

    key: KeyConfig

    @property
    def actor(self) -> Actor:
        """The key as the audit log names it."""
        return Actor(self.key.name, self.key.id)

    def require(self, *scopes: KeyScope, bot: str | None = None) -> None:
        """Raise `Forbidden` unless the key has one of these scopes, `NotFound` if it does not cover this bot."""
        if not self.key.scopes.intersection(scopes):
            raise Forbidden(
                f"this needs a key with scope {' or '.join(scopes)}",
                hint=f"this key has {', '.join(sorted(self.key.scopes))}",
            )
        # A text that cannot be a bot's id is never looked up: Postgres would refuse some of them as text.
        if bot is not None and not (len(bot) <= LONGEST_SLUG and _BOT.fullmatch(bot) and self.covers(bot)):
            raise not_found("bot", bot)

    def require_all_bots(self) -> None:
        """Raise `Forbidden` for a key that is limited to some bots."""
        if self.key.bots is not None:
            raise Forbidden("this needs a key for all bots", hint=f"this key is limited to {', '.join(sorted(self.key.bots))}")

    def covers(self, bot: str | None) -> bool:
        """Whether the key may see things of this bot; things of no bot (None) are for keys of all bots."""
        return self.key.bots is None or bot in self.key.bots

    def bots_asked_for(self, config: ConfigReplica, named: frozenset[str] | None) -> frozenset[str] | None:
        """The bots that a filter names, deleted ones too; without a filter those that the key covers (None: all)."""
        for bot in sorted(named or ()):
            if not self.covers(bot) or config.bot_or_deleted(bot) is None:
                raise not_found("bot", bot)
        return named or self.key.bots


def not_found(kind: str, name: str) -> NotFound:
    """The one answer for a thing that does not exist and for a thing that the key does not cover."""
    return NotFound(f"there is no {kind} {name[:_LONGEST_NAME]!r}")


def found(thing: Thing | None, kind: str, name: str, *, seen: Callable[[Thing], bool] = lambda _: True) -> Thing:
    """The thing, if it exists and `seen` lets the key see it. Raise `NotFound` otherwise."""
    if thing is None or not seen(thing):
        raise not_found(kind, name)
    return thing


def id_of(kind: str, text: str) -> str:
    """The canonical form of a UUID in a path. Raise `NotFound` for any other text: it is the id of nothing."""
    try:
        return str(UUID(text))
    except ValueError:
        raise not_found(kind, text) from None


def principal_for(resources: Resources, authorization: str, *, signed_in: bytes | None) -> Principal:
    """The principal of a request to this process, see `principal_of`."""
    return principal_of(
        resources.config,
        authorization,
        signed_in=signed_in,
        now_ms=resources.clock.now_ms(),
        max_age_ms=resources.settings.config_max_age_s * 1000,
    )


def principal_of(
    config: ConfigReplica, authorization: str, *, signed_in: bytes | None = None, now_ms: int, max_age_ms: float
) -> Principal:
    """The principal of an `Authorization` header, or of the digest of a key that the console signed in (`SIGNED_IN`).

    Keys are found by digest, so no comparison takes time that reveals a key. Raise `Unauthenticated`, or `Unavailable` while this
    process has not read any keys yet, or not within `max_age_ms`.
    """
    digest = _given_digest(authorization) if signed_in is None else signed_in
    known = config.key(digest)
    if known is not None and known.accepted_at(now_ms):
        if config.age_ms > max_age_ms:
            raise _may_be_revoked()
        config.used_keys.add(known.id)
        return Principal(known)
    if config.is_unreadable_key(digest):
        raise Unavailable("this process runs an older version than the one that saved this key; retry", retry_after_s=10)
    if not config.loaded:
        raise Unavailable("this process has not read the configuration yet", hint="try again in a moment", retry_after_s=1)
    key = authorization.strip().partition(" ")[2].strip()
    hint = "it was cut or mistyped: its checksum does not match" if is_mistyped(key) else _HINT
    raise Unauthenticated("this API key is not known, was revoked or has expired", hint=hint)


def _may_be_revoked() -> Unavailable:
    return Unavailable("this process cannot learn of revoked keys: Redis does not answer", hint="retry", retry_after_s=1)


def _given_digest(authorization: str) -> bytes:
    scheme, _, key = authorization.strip().partition(" ")
    if not key or scheme.lower() != _BEARER:
        raise Unauthenticated("an API key is required", hint=_HINT)
    return key_digest(key.strip())


def known_bot(config: ConfigReplica, name: str) -> BotConfig:
    """The bot of this id. Raise `NotFound`, or `Unavailable` if this process cannot read the bot's record."""
    bot = config.bot(name)
    if bot is not None:
        return bot
    if config.is_unreadable(name):
        raise Unavailable("this process runs an older version than the one that saved this bot; retry", retry_after_s=10)
    raise not_found("bot", name)


def principal_of_request(request: Request) -> Principal:
    """The principal of a request that FastAPI serves, see `principal_of`."""
    authorization, signed_in = request.headers.get("authorization", ""), request.scope.get(SIGNED_IN)
    return principal_for(resources_of(request), authorization, signed_in=signed_in)


# Only for the OpenAPI document; `_needs` makes the check.
_documented = Depends(HTTPBearer(auto_error=False, description="An API key, `adj_…`"))


def _needs(*scopes: KeyScope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: the principal, which has one of these scopes and covers the bot in the path, if there is one.

    Every route but those for operators has one, so it also checks the query parameters, after the key.
    """

    async def principal(request: Request, _: Annotated[object, _documented] = None) -> Principal:
        asking = principal_of_request(request)
        config = resources_of(request).config
        if scopes == ("admin",) and not await config.is_current(max_age_ms=ADMIN_MAX_AGE_MS, timeout_s=1):
            raise _may_be_revoked()
        asking.require(*scopes, bot=request.path_params.get("bot"))
        if not request.app.state.templates.is_meant(request.scope):
            raise MethodNotAllowed("this route does not do that", allow="")
        check_parameters(request)
        return asking

    return principal


Ingesting = Annotated[Principal, Security(_needs("ingest"))]
Reading = Annotated[Principal, Security(_needs("read"))]
Administering = Annotated[Principal, Security(_needs("admin"))]
AnyKey = Annotated[Principal, Security(_needs("ingest", "read", "admin"))]
ClosingSessions = Annotated[Principal, Security(_needs("ingest", "admin"))]


OwnTime = Callable[[BotConfig], Awaitable[int | None]]
"""The instant of a command to a bot in its own time; None for a bot that goes by Redis's clock."""
Changing = Callable[[Principal], AbstractAsyncContextManager[ConfigChange]]
"""Opens the transaction of one change of configuration."""


def resources_of(request: Request) -> Resources:
    return cast("Resources", request.app.state.resources)


def _part(name: str) -> Any:  # noqa: ANN401 - what FastAPI's own Depends gives
    async def part(request: Request) -> object:
        return getattr(resources_of(request), name)

    return Depends(part)


async def _sessions(request: Request) -> Sessions:
    resources = resources_of(request)
    return Sessions(live=resources.live, engine=resources.read_engine, config=resources.config)


async def _changing(request: Request) -> Changing:
    return lambda principal: resources_of(request).writer.changing(principal.actor)


ClockDep = Annotated[Clock, _part("clock")]
ConfigDep = Annotated[ConfigReplica, _part("config")]
EngineDep = Annotated[AsyncEngine, _part("engine")]
ReadEngineDep = Annotated[AsyncEngine, _part("read_engine")]
AdminEngineDep = Annotated[AsyncEngine, _part("admin_engine")]
TestsDep = Annotated[Shares, _part("tests")]
LedgerDep = Annotated[Ledger, _part("ledger")]
LiveDep = Annotated[LiveView, _part("live")]
LiveEventsDep = Annotated[LiveEvents, _part("live_events")]
OwnTimeDep = Annotated[OwnTime, _part("sandbox_ms")]
PipeDep = Annotated[Pipe, _part("pipe")]
SandboxesDep = Annotated[SandboxClocks, _part("sandboxes")]
SettingsDep = Annotated[Settings, _part("settings")]
UserVariablesDep = Annotated[UserVariables, _part("user_variables")]
SweepDep = Annotated[Sweep, _part("sweep")]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
ChangingDep = Annotated[Changing, Depends(_changing)]
