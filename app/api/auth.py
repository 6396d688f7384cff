"""Who asks, and may they: API keys, their scopes, and the bots that they cover.

A key is looked up by its digest in the process's memory. A key that covers some bots sees nothing of the others: they are
answered as if they did not exist. One module serves FastAPI's routes and the ingest endpoint in front of them.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from msgspec import Struct

from app.errors import Forbidden, NotFound, Unauthenticated
from app.ids import key_digest
from app.live.directory import Directory, KnownBot, KnownKey

Scope = Literal["ingest", "read", "admin"]

_bearer = HTTPBearer(auto_error=False, description="An API key, `adj_…`, with the scope that the route asks for")
_HINT = "send the header `Authorization: Bearer adj_…` with a key that was not revoked"


class Principal(Struct, frozen=True):
    """The key that a request came with."""

    key: KnownKey

    def covers(self, bot: str) -> bool:
        return self.key.bots is None or bot in self.key.bots

    def require(self, scope: Scope, *, bot: str | None = None) -> None:
        """Raises `Forbidden` if the key lacks the scope, `NotFound` if it does not cover the bot."""
        if scope not in self.key.scopes:
            raise Forbidden(f"this key lacks the scope `{scope}`", hint="ask an admin for a key that has it")
        if bot is not None and not self.covers(bot):
            raise no_such_bot(bot)

    def require_all_bots(self) -> None:
        """Raises `Forbidden` if the key is limited to some bots: what is about all of them is not for it."""
        if self.key.bots is not None:
            raise Forbidden("this key is limited to some bots", hint="use a key for all bots")


def no_such_bot(bot: str) -> NotFound:
    return NotFound(f"there is no bot {bot!r}", hint="create it with POST /v1/bots, or look at GET /v1/bots")


def principal_of(directory: Directory, authorization: str) -> Principal:
    """Who a value of the header `Authorization` stands for. Raises `Unauthenticated`."""
    kind, _, token = authorization.partition(" ")
    if kind.lower() != "bearer" or not token:
        raise Unauthenticated("no API key was sent", hint=_HINT)
    key = directory.key(key_digest(token.strip()))
    if key is None:
        raise Unauthenticated("the API key is not known", hint=_HINT)
    return Principal(key)


def known_bot(directory: Directory, bot: str) -> KnownBot:
    """A bot that exists. Raises `NotFound`."""
    known = directory.bot(bot)
    if known is None:
        raise no_such_bot(bot)
    return known


def require(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency: the principal, which has `scope` and covers the bot of the route's path, if it names one."""

    async def principal(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)] = None
    ) -> Principal:
        found = principal_of(request.app.state.resources.directory, request.headers.get("authorization", ""))
        found.require(scope, bot=request.path_params.get("bot"))
        return found

    return principal


Ingesting = Annotated[Principal, Depends(require("ingest"))]
Reading = Annotated[Principal, Depends(require("read"))]
Administering = Annotated[Principal, Depends(require("admin"))]
