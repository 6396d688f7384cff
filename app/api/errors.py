"""Every refusal and failure as RFC 9457 problem details, and an id for every request.

    {"type": "urn:adjourn:problem:stale_version", "title": …, "status": 412, "detail": …, "code": "stale_version",
     "hint": …, "errors": [{"where": "inactivity_minutes", "what": …, "hint": …}], "instance": "/v1/…", "request_id": …}

What was sent is never echoed. What nobody foresaw is told as 500 without its trace: that is in the log, under the request's id.
"""

import re
from collections.abc import Awaitable, Callable
from itertools import count
from secrets import token_hex
from typing import Any, cast

import asyncpg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import json
from redis.exceptions import RedisError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.errors import DomainError, Fault, StateTooLarge
from app.domain.json_value import DEEPEST
from app.errors import AdjournError, Conflict, Invalid, NotFound, TooLarge, Unauthenticated, Unavailable, UnsupportedMedia

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 2
MOST_FAULTS = 50
LONGEST_WHERE = 200
LONGEST_WHAT = 500
Headers = list[tuple[bytes, bytes]]

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = structlog.get_logger()

# Request ids need to be different, not unguessable; a UUID for each costs more than reading an entry.
_PROCESS = token_hex(12)
_COUNT = count()

# By pydantic's name of what is wrong; what is in braces is of its context.
_HINT = "see its type and limits in /docs"
_INSTANT = "RFC 3339 with an offset, such as 2026-11-21T10:00:00Z"
_HINTS = {
    "missing": "add it",
    "extra_forbidden": "mend its name or leave it out; /docs lists the fields",
    "json_invalid": "send JSON in UTF-8",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
    "string_too_short": "{min_length} characters or more",
    "string_too_long": "{max_length} characters at most",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "too_short": "{min_length} items or more",
    "too_long": "{max_length} items at most",
    "not_storable": f"texts without NUL and halves of characters, numbers that JSON has, {DEEPEST} levels at most",
    "value_error": "see the fields of this body in /docs",
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing", "timezone_aware"), _INSTANT),
}

# What they say of a value stays out of the answer: it may be somebody's text.
_POSTGRES_ERRORS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)


class MethodNotAllowed(AdjournError):
    """`allow` names the methods that the route has."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"

    def __init__(self, detail: str, *, allow: str) -> None:
        super().__init__(detail, hint="the header Allow lists what it does")
        self.allow = allow


class BadRequest(AdjournError):
    status = 400
    code = "bad_request"
    title = "Bad request"


class Unexpected(AdjournError):
    status = 500
    code = "internal_error"
    title = "Something went wrong here"


def install_error_handlers(app: FastAPI) -> None:
    """Make the app answer everything that it refuses, and every failure, as a problem."""
    for kind in (AdjournError, DomainError, HTTPException, RequestValidationError, RedisError, OSError, *_POSTGRES_ERRORS):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(RequestIds)


def problem_of(
    error: AdjournError | DomainError, *, instance: str | None = None, request_id: str | None = None
) -> dict[str, Any]:
    """The problem details of a refusal, as JSON-like values; empty members are left out."""
    told = _told(error)
    problem = {
        "type": f"urn:adjourn:problem:{told.code}",
        "title": told.title,
        "status": told.status,
        "detail": told.detail,
        "code": told.code,
        "hint": told.hint,
        "errors": [_shortened(fault) for fault in told.faults[:MOST_FAULTS]],
        "retry_after_s": told.retry_after_s,
        "instance": instance,
        "request_id": request_id,
    }
    return {name: value for name, value in problem.items() if value or name == "status"}


def problem_bytes(
    error: AdjournError | DomainError, *, instance: str | None = None, request_id: str | None = None
) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer, for an endpoint that speaks ASGI itself."""
    told = _told(error)
    headers: Headers = [(b"content-type", PROBLEM_JSON.encode())]
    if told.retry_after_s is not None:
        headers.append((b"retry-after", str(told.retry_after_s).encode()))
    if isinstance(told, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="adjourn"'))
    if isinstance(told, MethodNotAllowed):
        headers.append((b"allow", told.allow.encode()))
    return told.status, headers, json.encode(problem_of(told, instance=instance, request_id=request_id))


def _shortened(fault: Fault) -> dict[str, str]:
    """What was sent may be as long as a body; what is told of it is for reading."""
    return {"where": fault.where[:LONGEST_WHERE], "what": fault.what[:LONGEST_WHAT], "hint": fault.hint}


def error_of(error: Exception) -> AdjournError:
    """What a caller is told of any exception; `Unexpected` for those that nobody foresaw."""
    if isinstance(error, AdjournError | DomainError):
        return _told(error)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, RedisError):
        return Unavailable("Redis cannot be reached", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, (*_POSTGRES_ERRORS, OSError)):
        return _of_postgres(error)
    return Unexpected("the request could not be served", hint="tell the operator the request id")


class RequestIds:
    """Gives each request an id (the caller's own, if it sends a plain one), and an answer to those that fail unforeseen."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope)
        scope["adjourn.request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception as error:
                _log.exception("request.failed", method=scope["method"], path=scope["path"])
                if started:
                    raise
                await _send_problem(error_of(error), scope, send_with_id)


def request_id_of(scope: Scope) -> str:
    """The caller's `X-Request-Id` if it is fit to be written to a log, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value.decode("latin-1")):
            return cast("bytes", value).decode("latin-1")
    return f"{_PROCESS}{next(_COUNT):08x}"


async def _send_problem(error: AdjournError, scope: Scope, send: Callable[[Message], Awaitable[None]]) -> None:
    status, headers, body = problem_bytes(error, instance=scope["path"], request_id=scope["adjourn.request_id"])
    await send({"type": "http.response.start", "status": status, "headers": [*headers, _length(body)]})
    await send({"type": "http.response.body", "body": body})


async def _answer(request: Request, error: Exception) -> Response:
    told = error_of(error)
    if told.status >= Unexpected.status and not isinstance(error, AdjournError):
        _log.warning("request.unavailable", path=request.url.path, error=type(error).__name__, cause=str(error)[:500])
    status, headers, body = problem_bytes(told, instance=request.url.path, request_id=request.scope.get("adjourn.request_id"))
    answer = Response(body, status_code=status)
    answer.raw_headers = [*headers, _length(body)]
    return answer


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


def _told(error: AdjournError | DomainError) -> AdjournError:
    """A refusal of the domain as one of ours."""
    if isinstance(error, AdjournError):
        return error
    if isinstance(error, StateTooLarge):
        told: AdjournError = TooLarge(error.message, hint=error.hint)
    else:
        told = Invalid(error.message, hint=error.hint, faults=error.faults)
    return _Coded(told, error.code)


class _Coded(AdjournError):
    """A refusal of the domain under the domain's own code."""

    def __init__(self, told: AdjournError, code: str) -> None:
        super().__init__(told.detail, hint=told.hint, faults=told.faults)
        self.status, self.title, self.code = told.status, told.title, code  # type: ignore[misc]  # its own, not its class's


def _invalid(error: RequestValidationError) -> Invalid | UnsupportedMedia:
    wrong = error.errors()
    # FastAPI leaves a body as bytes if its media type is not JSON, and then complains that bytes are no object.
    if isinstance(error.body, bytes) and any(item["loc"] == ("body",) for item in wrong):
        return _unread_media()
    return Invalid("the request is not valid", hint="mend what `errors` names", faults=tuple(map(_fault, wrong)))


def _unread_media() -> UnsupportedMedia:
    return UnsupportedMedia("cannot read a body of this kind", hint="send it with `Content-Type: application/json`")


def _fault(item: dict[str, Any]) -> Fault:
    """One of pydantic's errors, in its words where they are words for a caller."""
    place, context = item["loc"], item.get("ctx", {})
    where = _where(place, within=context.get("within", ""))
    hint = _HINTS.get(item["type"], _HINT).format_map(context)
    match item["type"]:
        case "missing":
            return Fault(where, "it is required", hint)
        case "extra_forbidden":
            return Fault(where, "there is no such field", hint)
        case "json_invalid":
            return Fault("body", f"it is no JSON from character {place[1]} on: {context['error']}", hint)
        case _:
            return Fault(where, item["msg"].removeprefix("Value error, "), hint)


def _where(place: tuple[int | str, ...], *, within: str) -> str:
    """`("body", "scopes", 0)` as `scopes[0]`; `within` is where in that value, if a validator of ours knows it."""
    where = ""
    for part in place[1:]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    if within:
        where += f".{within}"
    # A field's name may be anything, even what no answer can be written in.
    return (where.lstrip(".") or str(place[0]))[:LONGEST_WHERE].encode("utf-8", "backslashreplace").decode()


def _of_http(error: HTTPException) -> AdjournError:
    match error.status_code:
        case 404:
            return NotFound("there is no such route", hint="/docs lists the routes")
        case 405:
            return MethodNotAllowed("this route does not do that", allow=(error.headers or {}).get("Allow", ""))
        case 413:
            return TooLarge("the body is too large", hint="send less in one request")
        case 415:
            return _unread_media()
        case _:
            return BadRequest("the body cannot be read", hint="send JSON in UTF-8, as it is")


def _of_postgres(error: Exception) -> AdjournError:
    if isinstance(error, DataError) or (isinstance(error, DBAPIError) and isinstance(_cause(error), asyncpg.DataError)):
        return Invalid("a value is out of the range of what can be kept", hint="see the types and limits in /docs")
    if isinstance(error, IntegrityError):
        return Conflict("this contradicts what is there", hint="read it again, and try again")
    if isinstance(error, DBAPIError) and isinstance(_cause(error), asyncpg.QueryCanceledError):
        return Unavailable("this took too long", hint="narrow it down, for example to a day", retry_after_s=RETRY_AFTER_S)
    if isinstance(error, SQLAlchemyError) and not isinstance(error, DBAPIError | PoolTimeoutError):
        return Unexpected("the request could not be served", hint="tell the operator the request id")
    return Unavailable("the archive cannot be reached", retry_after_s=RETRY_AFTER_S)


def _cause(error: DBAPIError) -> BaseException | None:
    return getattr(error.orig, "__cause__", None)
