"""Every refusal and failure as RFC 9457 problem details.

    {"type": "urn:adjourn:problem:stale_version", "title": …, "status": 412, "detail": …, "code": "stale_version",
     "hint": …, "errors": [{"where": "inactivity_minutes", "what": …, "hint": …}], "instance": "/v1/…", "request_id": …}

An answer never echoes a value that was sent. An unforeseen error is answered with 500 and without its traceback: the log has
that, under the request's id.
"""

from collections.abc import Iterator
from typing import Any

import asyncpg
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import json
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from app.domain.errors import DomainError, Fault, StateTooLarge
from app.errors import (
    LONGEST_SHOWN,
    MOST_FAULTS,
    AdjournError,
    Conflict,
    Invalid,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from app.failures import CONSTRAINT, QUERY_CANCELED, failure_of, sqlstate_of

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_S = 2
Headers = list[tuple[bytes, bytes]]

_log = structlog.get_logger()

# By pydantic's name of the fault; names in braces are of the fault's context.
_HINT = "see its type and limits in /docs"
_INSTANT = "RFC 3339 with an offset, such as 2026-11-21T10:00:00Z"
_HINTS = {
    "missing": "add it",
    "extra_forbidden": "correct its name or leave it out; /docs lists the fields",
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
    "not_storable": "{hint}",
    "value_error": "see the fields of this body in /docs",
    **dict.fromkeys(("datetime_type", "datetime_parsing", "datetime_from_date_parsing", "timezone_aware"), _INSTANT),
}

# Their messages stay out of the answer: they quote values, which may be a user's text.
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
    """Make the app answer every refusal and every failure with problem details."""
    for kind in (AdjournError, DomainError, HTTPException, RequestValidationError, RedisError, OSError, *_POSTGRES_ERRORS):
        app.add_exception_handler(kind, _answer)


def problem_of(
    error: AdjournError | DomainError, *, instance: str | None = None, request_id: str | None = None
) -> dict[str, Any]:
    """The problem details of a refusal, as JSON-like values; empty members are left out."""
    refusal = _refusal(error)
    problem = {
        "type": f"urn:adjourn:problem:{refusal.code}",
        "title": refusal.title,
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
        "hint": refusal.hint,
        "errors": [_shortened(fault) for fault in refusal.faults[:MOST_FAULTS]],
        "retry_after_s": refusal.retry_after_s,
        "instance": instance[:LONGEST_SHOWN] if instance else None,
        "request_id": request_id,
    }
    return {name: value for name, value in problem.items() if value or name == "status"}


def problem_bytes(
    error: AdjournError | DomainError, *, instance: str | None = None, request_id: str | None = None
) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer, for an endpoint that speaks ASGI itself."""
    refusal = _refusal(error)
    headers: Headers = [(b"content-type", PROBLEM_JSON.encode())]
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    if isinstance(refusal, RateLimited):
        headers += refusal.headers
    if isinstance(refusal, Unauthenticated):
        headers.append((b"www-authenticate", b'Bearer realm="adjourn"'))
    if isinstance(refusal, MethodNotAllowed):
        headers.append((b"allow", refusal.allow.encode()))
    body = json.encode(problem_of(refusal, instance=instance, request_id=request_id))
    headers.append((b"content-length", str(len(body)).encode()))
    return refusal.status, headers, body


def _shortened(fault: Fault) -> dict[str, str]:
    """Names and values that were sent may be as long as a body; the answer shows their beginning."""
    return {"where": fault.where[:LONGEST_SHOWN], "what": fault.what[:LONGEST_SHOWN], "hint": fault.hint}


def error_of(error: Exception) -> AdjournError:
    """The refusal that answers any exception; `Unexpected` for an unforeseen one."""
    if isinstance(error, AdjournError | DomainError):
        return _refusal(error)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _of_http(error)
    return _of_server(error)


async def _answer(request: Request, error: Exception) -> Response:
    refusal = error_of(error)
    if refusal.status >= Unexpected.status and not isinstance(error, AdjournError):
        _log.warning("request unavailable", path=request.url.path, error=type(error).__name__, cause=str(error)[:500])
    if isinstance(refusal, MethodNotAllowed):
        refusal.allow = ", ".join(request.app.state.templates.methods(request.scope)) or refusal.allow
    status, headers, body = problem_bytes(refusal, instance=request.url.path, request_id=request.scope.get("adjourn.request_id"))
    answer = Response(body, status_code=status)
    answer.raw_headers = headers
    return answer


def _refusal(error: AdjournError | DomainError) -> AdjournError:
    """A refusal by the domain as one of the API."""
    if isinstance(error, AdjournError):
        return error
    if isinstance(error, StateTooLarge):
        refusal: AdjournError = TooLarge(error.message, hint=error.hint)
    else:
        refusal = Invalid(error.message, hint=error.hint, faults=error.faults)
    return _Coded(refusal, error.code)


class _Coded(AdjournError):
    """A refusal by the domain, under the domain's own code."""

    def __init__(self, refusal: AdjournError, code: str) -> None:
        super().__init__(refusal.detail, hint=refusal.hint, faults=refusal.faults)
        self.status, self.title, self.code = refusal.status, refusal.title, code  # type: ignore[misc]  # its own, not its class's


def _invalid(error: RequestValidationError) -> Invalid | UnsupportedMedia:
    wrong = error.errors()
    # FastAPI leaves a body as bytes if its media type is not JSON, and then complains that bytes are no object.
    if isinstance(error.body, bytes) and any(item["loc"] == ("body",) for item in wrong):
        return _unread_media()
    return Invalid(
        "the request is not valid",
        hint="correct what `errors` names",
        faults=tuple(fault for item in wrong for fault in _faults(item)),
    )


def _unread_media() -> UnsupportedMedia:
    return UnsupportedMedia("cannot read a body of this kind", hint="send it with `Content-Type: application/json`")


def _faults(item: dict[str, Any]) -> Iterator[Fault]:
    """The faults that one of pydantic's stands for: a policy inside a body has its own."""
    if item["type"] == "policy_faults":
        where = _where(item["loc"], within="")
        yield from (Fault(f"{where}.{fault.where}", fault.what, fault.hint) for fault in item["ctx"]["faults"])
    else:
        yield _fault(item)


def _fault(item: dict[str, Any]) -> Fault:
    """One of pydantic's faults, in its words unless a caller would not understand them."""
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
    """`("body", "scopes", 0)` as `scopes[0]`; `within` is the place in that value, if a validator of ours knows it."""
    where = ""
    for part in place[1:]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}"
    if within:
        where += f".{within}"
    # A field's name may hold characters that UTF-8 cannot encode.
    return (where.lstrip(".") or str(place[0]))[:LONGEST_SHOWN].encode("utf-8", "backslashreplace").decode()


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


def _of_server(error: Exception) -> AdjournError:
    """The refusal that answers an error of Redis, of Postgres or of the program."""
    state = sqlstate_of(error)
    if state == QUERY_CANCELED:
        return Unavailable("this took too long", hint="narrow it down, for example to a day", retry_after_s=RETRY_AFTER_S)
    match failure_of(error):
        case "unreachable":
            server = "Redis" if isinstance(error, RedisError) else "the archive"
            return Unavailable(f"{server} cannot be reached", retry_after_s=RETRY_AFTER_S)
        case "bad_data" if state is not None and state.startswith(CONSTRAINT):
            return Conflict("this contradicts what is stored", hint="read it again, and try again")
        case "bad_data" if state is not None:
            return Invalid("a value is out of the range that can be stored", hint="see the types and limits in /docs")
        case _:
            return Unexpected("the request could not be served", hint="give the operator the request id")
