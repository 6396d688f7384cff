"""Who asks, and what they may: keys by scope and by bot.

A key that is limited to some bots sees nothing of others: they are not found, just as if they were not there. A missing scope is
refused before anything is looked up, so it tells nothing of what exists either.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from msgspec import Struct

from app.api.parameters import check_parameters
from app.config.follower import ConfigReplica
from app.config.records import BotConfig, KeyConfig
from app.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from app.ids import key_digest

Scope = Literal["ingest", "read", "admin"]

_BEARER = "bearer"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_HINT = "send `Authorization: Bearer adj_…`"


class Principal(Struct, frozen=True):
    """The key that a request came with."""

    key: KeyConfig

    def require(self, *scopes: Scope, bot: str | None = None) -> None:
        """Raises `Forbidden` unless the key has one of these scopes, `NotFound` if it has nothing to do with this bot."""
        if not self.key.scopes.intersection(scopes):
            raise Forbidden(
                f"this needs a key with scope {' or '.join(scopes)}",
                hint=f"this key has {', '.join(sorted(self.key.scopes))}",
            )
        # What cannot be a bot's name is asked of nobody: Postgres would refuse some of it as a text.
        if bot is not None and not (_NAME.fullmatch(bot) and self.covers(bot)):
            raise no_bot(bot)

    def require_all_bots(self) -> None:
        """Raises `Forbidden` for a key that is limited to some bots."""
        if self.key.bots is not None:
            raise Forbidden("this needs a key for all bots", hint=f"this key is limited to {', '.join(sorted(self.key.bots))}")

    def covers(self, bot: str) -> bool:
        return self.key.bots is None or bot in self.key.bots


def principal_of(config: ConfigReplica, authorization: str) -> Principal:
    """Whose key an `Authorization` header carries. Keys are found by their digest, so no comparison takes time to tell.

    Raises `Unauthenticated`, or `Unavailable` while this process does not know any keys yet.
    """
    scheme, _, key = authorization.strip().partition(" ")
    if not key or scheme.lower() != _BEARER:
        raise Unauthenticated("an API key is required", hint=_HINT)
    digest = key_digest(key.strip())
    known = config.key(digest)
    if known is not None:
        return Principal(known)
    if config.is_unreadable_key(digest):
        raise Unavailable("this process is too old to read what is saved of this key", retry_after_s=10)
    if not config.loaded:
        raise Unavailable("bots and keys are not known yet", hint="try again in a moment", retry_after_s=1)
    raise Unauthenticated("this API key is not known, or was revoked", hint=_HINT)


def known_bot(config: ConfigReplica, name: str) -> BotConfig:
    """The bot of this name. Raises `NotFound`, or `Unavailable` if this process cannot read what is kept of it."""
    bot = config.bot(name)
    if bot is not None:
        return bot
    if config.is_unreadable(name):
        raise Unavailable("this process is too old to read what is saved of this bot", retry_after_s=10)
    raise no_bot(name)


def no_bot(name: str) -> NotFound:
    """The same words whether the bot does not exist or is none of the asker's."""
    return NotFound(f"there is no bot {name[:64]!r}")


# Only for the OpenAPI document; the check is `_needs`'s own.
_documented = Depends(HTTPBearer(auto_error=False, description="An API key, `adj_…`"))


def _needs(*scopes: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: the principal, who has one of these scopes and, where the path names a bot, may see it.

    Every route but those of operators has one, so it is here that parameters are looked at, once it is known who asks.
    """

    async def principal(request: Request, _: Annotated[object, _documented] = None) -> Principal:
        found = principal_of(request.app.state.resources.config, request.headers.get("authorization", ""))
        found.require(*scopes, bot=request.path_params.get("bot"))
        check_parameters(request)
        return found

    return principal


Ingesting = Annotated[Principal, Security(_needs("ingest"))]
Reading = Annotated[Principal, Security(_needs("read"))]
Administering = Annotated[Principal, Security(_needs("admin"))]
Anyone = Annotated[Principal, Security(_needs("ingest", "read", "admin"))]
ReadingOrIngesting = Annotated[Principal, Security(_needs("read", "ingest"))]
