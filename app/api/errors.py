"""Every refusal as RFC 9457 problem details: what, where, how to mend. Never a stack trace.

It serves FastAPI's routes by handlers and the ingest endpoint by plain functions, so both say the same.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import structlog
from asyncpg import InterfaceError, PostgresError
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import json
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.errors import DomainError, InvalidPolicy
from app.errors import AdjournError, Fault, Invalid, Unavailable

log = structlog.get_logger(__name__)

MEDIA = "application/problem+json"
REQUEST_ID = "x-request-id"
# What Postgres or Redis being away looks like from a route.
AWAY = (SQLAlchemyError, PostgresError, InterfaceError, RedisError, OSError, TimeoutError)

Refusal = AdjournError | DomainError


def problem_of(error: Refusal) -> dict[str, Any]:
    """The problem details of a refusal, without what belongs to the request."""
    known = error if isinstance(error, AdjournError) else _invalid(error)
    problem: dict[str, Any] = {
        "type": f"urn:adjourn:problem:{error.code}",
        "title": known.title,
        "status": known.status,
        "code": error.code,
        "detail": known.detail,
    }
    if known.hint:
        problem["hint"] = known.hint
    if known.faults:
        problem["errors"] = [{"where": fault.where, "what": fault.what, "hint": fault.hint} for fault in known.faults]
    return problem


def problem_bytes(error: Refusal, *, instance: str, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body, for an endpoint that speaks plain ASGI."""
    problem = problem_of(error) | {"instance": instance, "request_id": request_id}
    headers = [(b"content-type", MEDIA.encode())]
    headers += [(name.encode(), value.encode()) for name, value in _headers(error).items()]
    return problem["status"], headers, json.encode(problem)


def install_error_handlers(app: FastAPI) -> None:
    """Make every error of `app` a problem, and give every answer a request id."""
    app.add_exception_handler(AdjournError, _on_refusal)
    app.add_exception_handler(DomainError, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    for kind in AWAY:
        app.add_exception_handler(kind, _on_away)
    app.add_middleware(_Edge)


class _Edge:
    """Outermost: names each request, and answers what nobody foresaw without a word of what it was."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope.setdefault("state", {})["request_id"] = uuid4().hex
        started = False

        async def named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, named)
        except Exception:
            log.exception("request failed", path=scope["path"], request_id=request_id)
            if started:
                raise
            await unforeseen(scope["path"], request_id)(scope, receive, named)


def unforeseen(path: str, request_id: str) -> Response:
    """What is told of an error that nobody foresaw; the log has the rest, by the request's id."""
    detail = "Adjourn made a mistake; it was logged under this request id"
    return _response(_plain(500, "unexpected", "Something went wrong", detail), path=path, request_id=request_id)


async def _on_refusal(request: Request, error: Exception) -> Response:
    if not isinstance(error, AdjournError | DomainError):
        raise error
    return _answer(request, problem_of(error), _headers(error))


async def _on_invalid(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    faults = tuple(Fault(_where(item["loc"]), item["msg"], _mend(item)) for item in error.errors())
    return _answer(request, problem_of(Invalid("the request is not valid", faults=faults)))


async def _on_http(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, and what else the framework refuses."""
    if not isinstance(error, HTTPException):
        raise error
    title = HTTPStatus(error.status_code).phrase
    code = title.lower().replace(" ", "_").replace("-", "_")
    return _answer(request, _plain(error.status_code, code, title, str(error.detail)), error.headers)


async def _on_away(request: Request, error: Exception) -> Response:
    """A server that does not answer: nothing was lost, and it is worth trying again."""
    log.warning("server away", path=request.url.path, error=repr(error)[:300])
    away = Unavailable("a server that this needs does not answer now", hint="try again in a moment", retry_after_s=2)
    return _answer(request, problem_of(away), _headers(away))


def _invalid(error: DomainError) -> AdjournError:
    if isinstance(error, InvalidPolicy):
        faults = tuple(Fault(path, message) for path, message in error.problems)
        return Invalid("the policy is not valid", faults=faults)
    field = getattr(error, "field", None)
    faults = (Fault(field, error.message, error.hint),) if field else ()
    return Invalid(error.message, hint=error.hint, faults=faults)


def _headers(error: Refusal) -> dict[str, str]:
    headers = {}
    if isinstance(error, AdjournError):
        if error.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if error.retry_after_s is not None:
            headers["retry-after"] = str(error.retry_after_s)
    return headers


def _where(loc: Sequence[str | int]) -> str:
    """`("body", "channels", 0)` as `channels[0]`: where in the body, or the parameter's name."""
    parts = loc[1:] if len(loc) > 1 else loc
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return path.lstrip(".")


def _mend(item: Mapping[str, Any]) -> str:
    context = item.get("ctx") or {}
    bounds = ", ".join(f"{name} {value}" for name, value in context.items() if name != "error")
    return f"expected: {bounds}" if bounds else ""


def _plain(status: int, code: str, title: str, detail: str) -> dict[str, Any]:
    return {"type": f"urn:adjourn:problem:{code}", "title": title, "status": status, "code": code, "detail": detail}


def _answer(request: Request, problem: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return _response(problem, path=request.url.path, request_id=request.scope["state"]["request_id"], headers=headers)


def _response(problem: dict[str, Any], *, path: str, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    body = json.encode(problem | {"instance": path, "request_id": request_id})
    return Response(body, status_code=problem["status"], headers=dict(headers or {}), media_type=MEDIA)
