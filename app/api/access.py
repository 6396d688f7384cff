"""Each request as it was answered: its duration by route, method and status in the metrics, and the access line in the log.

It owns the names of routes in both: templates of paths, so that their number is bounded, whatever callers ask for. No line holds
a query, a body or an address. Calls of the API that the console makes within the process are no requests.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Match, Mount
from starlette.types import Message, Scope, Send

from app.clock import monotonic_ms
from app.config.records import SIGNED_IN
from app.metrics import REQUESTS_ANSWERED

ENTRY_ROUTE = "/v1/bots/{bot}/messages"
BATCH_ROUTE = "/v1/bots/{bot}/messages/batch"
KEY_NAME, BOT, ROUTE, REQUEST_ID = "adjourn.key_name", "adjourn.bot", "adjourn.route", "adjourn.request_id"
"""Names in a request's ASGI scope, set by the parts that find these out."""

_UNKNOWN_ROUTE = "unknown"
_LEFT = 499  # the client closed the connection before an answer began
_FAILED = 500
_LONGEST = 64
_log = structlog.get_logger(__name__)


class AccessLog:
    """Measures every request and logs a share of them: of each kind of status the same share, and every answer from 500 on."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._due: dict[int, float] = {}

    def write(
        self, *, route: str, method: str, status: int, began_ms: float, key: str | None, bot: str | None, request_id: str
    ) -> None:
        """Add one request that was answered, and log it if it is due."""
        ms = monotonic_ms() - began_ms
        REQUESTS_ANSWERED.add((route, method, str(status)), ms / 1000)
        if self._share and self._is_due(status):
            named = {"key": key, "bot": bot and bot[:_LONGEST]}
            fields = {name: value for name, value in named.items() if value}
            _log.info(
                "request answered", route=route, method=method, status=status, ms=round(ms, 1), **fields, request_id=request_id
            )

    def _is_due(self, status: int) -> bool:
        kind = status // 100
        due = self._due.get(kind, 1.0) + self._share  # the first of a kind is logged
        self._due[kind] = due - 1 if due >= 1 else due
        return due >= 1 or status >= _FAILED


class Watched:
    """One request on its way through ASGI."""

    def __init__(self, access: AccessLog, scope: Scope, send: Send) -> None:
        self._access = access
        self._scope = scope
        self._send = send
        self._began_ms = monotonic_ms()
        self._status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
        await self._send(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        scope = self._scope
        self._access.write(
            route=scope.get(ROUTE) or _route_of(scope),
            method=scope["method"],
            status=self._status or (_LEFT if kind is None else _FAILED),
            began_ms=self._began_ms,
            key=scope.get(KEY_NAME),
            bot=scope.get(BOT) or scope.get("path_params", {}).get("bot"),
            request_id=scope.get(REQUEST_ID, ""),
        )


class PathTemplates:
    """The paths of the API and their methods, which the headers `Allow` and the checks of ambiguous paths take from here.

    A path may match two templates: `/v1/deliveries/replay` is no delivery `replay`, and `/users/ann/sessions` no user
    `ann/sessions`. The one with more literal text is meant. Slashes within ids are escaped, so raw paths are compared.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def methods(self, scope: Scope) -> list[str]:
        """The methods of a request's path."""
        return sorted(self._known.get(self._meant(scope), ()))

    def is_meant(self, scope: Scope) -> bool:
        """Whether the route that was chosen for a request is the one that its path means."""
        template = scope["route"].path_format
        return template not in self._ambiguous or self._meant(scope) in {template, ""}

    def _meant(self, scope: Scope) -> str:
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        return max((each for each, pattern in self._patterns.items() if pattern.fullmatch(path)), key=_literal, default="")

    @cached_property
    def _known(self) -> dict[str, set[str]]:
        known: dict[str, set[str]] = {}
        for route in _leaves(self._app.routes):
            known.setdefault(route.path_format, set()).update(route.methods or ())
        return known

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        return {each: re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each))) for each in self._known}

    @cached_property
    def _ambiguous(self) -> set[str]:
        """Templates whose routes match another template's paths, too."""
        asked = [re.sub(r"\{\w+\}", "x", each) for each in self._known]
        routes = {route.path_format: route.path_regex for route in _leaves(self._app.routes)}
        slashed = {each.path_format for each in _leaves(self._app.routes) if ":path}" in each.path}
        return slashed | {each for each, pattern in routes.items() if sum(bool(pattern.match(path)) for path in asked) > 1}


def _literal(template: str) -> int:
    return len(re.sub(r"\{\w+\}", "", template))


def _leaves(routes: Sequence[Any]) -> Iterator[APIRoute]:
    """The routes of the API, also within routers that were included."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from _leaves(route.original_router.routes)


def is_watched(scope: Scope) -> bool:
    """Whether it is a request of a client."""
    return scope["type"] == "http" and SIGNED_IN not in scope


def _route_of(scope: Scope) -> str:
    """The template of a path. A request that was refused before its route was looked for is matched here."""
    found = scope.get("route")
    if found is None and "app" in scope:
        asked = {"type": "http", "method": scope["method"], "path": scope["path"], "root_path": ""}
        found = _match(scope["app"].routes, asked)
    path: str | None = getattr(found, "path", None)
    root: str = scope.get("root_path", "")
    if path is None:
        return _UNKNOWN_ROUTE
    return root if isinstance(found, Mount) and root.endswith(path) else root + path


def _match(routes: Sequence[Any], asked: Scope) -> object:
    """The route of a path, also within routers that were included; None if there is none."""
    found = next((route for route in routes if route.matches(asked)[0] is not Match.NONE), None)
    router = getattr(found, "original_router", None)
    return found if router is None else _match(router.routes, asked)
