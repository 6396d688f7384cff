"""ASGI middleware around every route: request ids, problem details for unforeseen errors, keys, and a limit on bodies."""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from hashlib import blake2b
from http import HTTPStatus
from itertools import count
from secrets import token_hex
from typing import Any, cast

import structlog
from fastapi import FastAPI
from starlette import datastructures
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.access import KEY_NAME, REQUEST_ID
from app.api.auth import principal_for
from app.api.errors import Headers, error_of, problem_bytes
from app.config.records import SIGNED_IN
from app.errors import LONGEST_SHOWN, AdjournError, TooLarge, UnsupportedMedia
from app.ingest.limits import rate_headers
from app.resources import Resources
from app.settings import Settings
from app.shares import OWNER

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PROBES = ("/healthz", "/readyz")
"""Paths that wait for no share of the event loop, and for which connections are kept free."""
_KEYED = "/v1/"
_METRICS = ("/metrics",)
_DOCUMENT = "/openapi.json"
_DOCS = ("/docs", _DOCUMENT)
_log = structlog.get_logger()

# Request ids need to be different, not unguessable; a UUID for each costs more than reading an entry.
_PROCESS = token_hex(12)
_COUNT = count()


ADMIN_BODY_BYTES = 65_536
"""Longest body of the routes behind this middleware: all but those that take entries."""


COMPRESSED_FROM_BYTES = 4_096
_LEVEL = 1  # a page of 4 MB becomes a quarter in 40 ms; level 6 takes 115 ms for 5 % more

_FOR_BROWSERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_NO_STORE = (b"cache-control", b"no-store")  # answers hold what users said, and some a new key or secret


def install_middleware(app: FastAPI, settings: Settings) -> None:
    """Request ids are outermost but for CORS, so that a body over the limit is answered with one, too."""
    app.add_middleware(EntityTags)
    app.add_middleware(Compression)
    app.add_middleware(BodyLimit, max_bytes=ADMIN_BODY_BYTES)
    app.add_middleware(KeyFirst, metrics=settings.metrics_need_key, docs=settings.docs_need_key)
    hsts = b"max-age=%d" % settings.hsts_max_age_s
    lasting = [(b"strict-transport-security", hsts)] if settings.hsts_max_age_s else []
    app.add_middleware(RequestIds, headers=_FOR_BROWSERS + lasting)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["authorization", "content-type", "if-match", "if-none-match", "last-event-id", "x-request-id"],
            expose_headers=["etag", "location", "ratelimit", "ratelimit-policy", "retry-after", "x-request-id"],
        )


class Ports:
    """Which paths each port has, if metrics and documents have a port of their own: the probes both, all others one."""

    def __init__(self, operations_port: int | None) -> None:
        self._operations_port = operations_port
        self.all_paths_on_one = operations_port is None

    def has(self, scope: Scope) -> bool:
        """Whether the port that a request arrived at has its path."""
        if self._operations_port is None or scope["path"] in PROBES or SIGNED_IN in scope:  # the console's own calls
            return True
        arrived_at = (scope.get("server") or ("", None))[1]
        return (arrived_at == self._operations_port) == _is_for_operators(scope["path"])


def _is_for_operators(path: str) -> bool:
    return path in {*_METRICS, *_DOCS} or path.startswith(f"{_DOCS[0]}/")


class EntityTags:
    """Gives each JSON answer to a GET an `ETag`, and answers 304 without a body where `If-None-Match` has it.

    The tag is of the bytes, so it cannot be wrong: a closed session that gets a late entry has another one. It saves the
    transfer, not the read. A route's own `ETag` stays. Streams have none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith((_KEYED, _DOCUMENT)):
            send = _tagged(send, datastructures.Headers(scope=scope).get("if-none-match", ""))
        await self._app(scope, receive, send)


def _tagged(send: Send, known: str) -> Send:
    """Sends with its tag an answer that comes in one piece, or only the tag if `known`, an `If-None-Match`, names it."""
    held: Message | None = None

    async def sending(message: Message) -> None:
        nonlocal held
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
            if datastructures.Headers(raw=message["headers"]).get("content-type") == "application/json":
                held = message
                return
        elif held is not None:
            start, held = held, None
            if not message.get("more_body"):
                start, message = _with_tag(start, message, known)
            await send(start)
        await send(message)

    return sending


def _with_tag(start: Message, body: Message, known: str) -> tuple[Message, Message]:
    headers = datastructures.MutableHeaders(raw=list(start["headers"]))
    tag = headers.setdefault("etag", f'W/"{blake2b(body.get("body", b""), digest_size=12).hexdigest()}"')
    named = {one.strip().removeprefix("W/") for one in known.split(",")}
    if tag.removeprefix("W/") in named or "*" in named:
        del headers["content-length"], headers["content-type"]
        start, body = {**start, "status": HTTPStatus.NOT_MODIFIED}, {**body, "body": b""}
    return {**start, "headers": headers.raw}, body


class Compression:
    """Compresses large answers of the API for clients that take gzip; not streams of events, nor what is compressed already.

    Pages of the console are left as they are: they hold tokens beside what a request says, and the length of a compressed
    answer would give a hint of one by the other.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressing = GZipMiddleware(app, minimum_size=COMPRESSED_FROM_BYTES, compresslevel=_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        of_the_api = scope["type"] == "http" and scope["path"].startswith(_KEYED)
        await (self._compressing if of_the_api else self._app)(scope, receive, send)


class KeyFirst:
    """Refuses requests without a valid key, and those of a key that sends too many, before anything else is done for them.

    FastAPI would read and decode the body first. Scope and bot are the route's to check.
    """

    def __init__(self, app: ASGIApp, *, metrics: bool, docs: bool) -> None:
        self._app = app
        self._keyed = (_KEYED, *(_METRICS if metrics else ()), *(_DOCS if docs else ()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._keyed):
            resources: Resources = scope["app"].state.resources
            authorization = datastructures.Headers(scope=scope).get("authorization", "")
            try:
                principal = principal_for(resources, authorization, signed_in=scope.get(SIGNED_IN))
                scope[KEY_NAME] = principal.key.name
                check_encoding(datastructures.Headers(scope=scope).get("content-encoding", ""))
                if scope["path"] in _METRICS:
                    principal.require("read")
                    principal.require_all_bots()
                spent = await resources.limits.spend_request(principal.key)
            except AdjournError as error:
                await send_problem(error, scope, send)
                return
            owner = OWNER.set(f"key:{principal.key.id}")
            try:
                await self._app(scope, receive, _with_headers(send, [*rate_headers(spent), _NO_STORE]))
            finally:
                OWNER.reset(owner)
            return
        await self._app(scope, receive, send)


def check_encoding(encoding: str) -> None:
    """Raise `UnsupportedMedia` for a body that was compressed: nothing here unpacks one."""
    if encoding.lower() not in {"", "identity"}:
        raise cannot_read(encoding, hint="send the body as it is, without `Content-Encoding`")


def cannot_read(what: str, *, hint: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"cannot read {what[:LONGEST_SHOWN]!r}", hint=hint)


class BodyLimit:
    """Refuses bodies over a limit before they are read into memory, whether their length is announced or not.

    Starlette's own limit answers in plain text; this one leaves the answer to the app's error handlers.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._max_bytes

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # Of the kind that FastAPI lets through while it reads a body.
                raise HTTPException(TooLarge.status)
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)


class RequestIds:
    """Gives each request an id (the caller's own, if it is plain), and answers requests that fail with an unforeseen error.

    `headers` are added to each answer that does not have them.
    """

    def __init__(self, app: ASGIApp, *, headers: Headers) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope[REQUEST_ID] = request_id
        started = False
        answer = _with_headers(send, [*self._headers, (b"x-request-id", request_id.encode())])

        async def send_with_id(message: Message) -> None:
            nonlocal started
            started = True
            await answer(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                _log.exception("request failed", method=scope["method"], path=scope["path"])
                if started:
                    raise
                await send_problem(error_of(error), scope, send_with_id)


def request_id_of(scope: MutableMapping[str, Any]) -> str:
    """The caller's `X-Request-Id` if it is fit to be written to a log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value.decode("latin-1")):
            return cast("bytes", value).decode("latin-1")
    return f"{_PROCESS}{next(_COUNT):08x}"


def _with_headers(send: Send, added: Headers) -> Send:
    """Sends these headers, too, where an answer does not have them."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message.get("headers", ()))
            names = {name for name, _ in own}
            message["headers"] = own + [each for each in added if each[0] not in names]
        await send(message)

    return sending


async def send_problem(error: AdjournError, scope: Scope, send: Callable[[Message], Awaitable[None]]) -> None:
    """Answer a request with a refusal, outside of FastAPI."""
    request_id = scope.setdefault(REQUEST_ID, request_id_of(scope))
    status, headers, body = problem_bytes(error, instance=scope["path"], request_id=request_id)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
