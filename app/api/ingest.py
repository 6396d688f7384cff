"""The two ingest routes: a small ASGI endpoint in front of FastAPI, since every message passes through here.

It reads a body, finds key and bot in the process's memory, hands the entries to the intake and writes the answer. FastAPI does
not know these routes; `app.api.openapi` adds them to the document.
"""

import re
from typing import Self

import structlog
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from app.api.access import BATCH_ROUTE, BOT, ENTRY_ROUTE, KEY_NAME, REQUEST_ID, ROUTE
from app.api.auth import Principal, known_bot, principal_for
from app.api.errors import MethodNotAllowed, error_of, problem_bytes, problem_of
from app.api.fields import refuse_unknown
from app.api.middleware import cannot_read, check_encoding, request_id_of
from app.config.records import SIGNED_IN, BotConfig, KeyConfig
from app.domain.entry import Entry
from app.domain.errors import DomainError
from app.errors import AdjournError, Invalid, TooLarge, Unavailable
from app.ingest.intake import EntryRefusal, Receipt, encode
from app.ingest.limits import Admission, over_rate, rate_headers
from app.ingest.wire import entries_from, entry_from
from app.resources import Resources
from app.shares import Shares

Reply = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body."""

_ROUTE = re.compile(r"/v1/bots/(?P<bot>[^/]+)/messages(?P<batch>/batch)?")
_JSON = "application/json"
_LARGE_BODY = 16_384  # bytes; as a batch it takes about 2 ms to decode and to submit
_NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
_log = structlog.get_logger()


def route_of(scope: Scope) -> re.Match[str] | None:
    """Whether a request is for one of the two routes, by whatever method."""
    return _ROUTE.fullmatch(scope["path"]) if scope["type"] == "http" else None


async def serve(resources: Resources, route: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:  # noqa: PLR0917 - ASGI's own three come last
    """Answer one request. Every refusal is an answer; so is an unexpected failure, whose traceback is in the log."""
    request_id = scope[REQUEST_ID] = request_id_of(scope)
    scope[ROUTE], scope[BOT] = BATCH_ROUTE if route["batch"] else ENTRY_ROUTE, route["bot"]
    try:
        status, headers, body = await _answer(resources, scope, receive, route)
    except (AdjournError, DomainError) as error:
        status, headers, body = problem_bytes(error, instance=scope["path"], request_id=request_id)
    except Exception as error:  # noqa: BLE001 - logged with its trace
        _log.exception("request failed", method=scope["method"], path=scope["path"], request_id=request_id)
        status, headers, body = problem_bytes(error_of(error), instance=scope["path"], request_id=request_id)
    headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer(resources: Resources, scope: Scope, receive: Receive, route: re.Match[str]) -> Reply:
    if scope["method"] != "POST":
        raise MethodNotAllowed("entries are posted", allow="POST")
    headers = dict(scope["headers"])
    principal, bot = _principal_and_bot(resources, scope, headers, name=route["bot"])
    key = principal.key
    resources.limits.check_entries(key, bot)
    if scope["query_string"]:
        refuse_unknown(list(QueryParams(scope["query_string"])), known={})
    check_encoding(headers.get(b"content-encoding", b"").decode("latin-1"))
    media = headers.get(b"content-type", _JSON.encode()).decode("latin-1").partition(";")[0].strip().lower()
    if not route["batch"]:
        _admit(resources, scope, headers, Admission(key, bot, resources.limits.held_by(key, bot)))
    with _Body(resources.bodies, f"key:{key.id}", limit=resources.settings.max_body_bytes) as body:
        return await _taken(resources, key, bot, await body.read(receive, headers), media=media, batch=bool(route["batch"]))


async def _taken(resources: Resources, key: KeyConfig, bot: BotConfig, body: bytes, *, media: str, batch: bool) -> Reply:
    if len(body) >= _LARGE_BODY:
        await resources.decoding.wait(f"key:{key.id}")
    entries = _many_of(resources, body, media=media) if batch else [_one_of(body, media=media)]
    allowed = await resources.limits.spend_entries(key, bot, entries=len(entries), size=len(body))
    refused = [over_rate(allowed.over, allowed.spent) for _ in entries[allowed.entries :]]
    results = await resources.intake.take(bot, [*entries[: allowed.entries], *refused]) if entries else []
    status, answer, text = _batch(results) if batch else _single(results)
    return status, answer + rate_headers(allowed.spent), text


def _principal_and_bot(
    resources: Resources, scope: Scope, headers: dict[bytes, bytes], *, name: str
) -> tuple[Principal, BotConfig]:
    authorization = headers.get(b"authorization", b"").decode("latin-1")
    principal = principal_for(resources, authorization, signed_in=scope.get(SIGNED_IN))
    scope[KEY_NAME] = principal.key.name
    principal.require("ingest", bot=name)
    return principal, known_bot(resources.config, name)


def _admit(resources: Resources, scope: Scope, headers: dict[bytes, bytes], admission: Admission) -> None:
    """Let further requests like this one take the direct way (`app.api.direct`)."""
    path, authorization = scope.get("raw_path") or b"", headers.get(b"authorization")
    named_plainly = path == scope["path"].encode() and not scope["query_string"]
    if authorization is not None and named_plainly and SIGNED_IN not in scope and admission.bot.clock_mode is None:
        resources.admissions.add(authorization, path, admission)


def _one_of(body: bytes, *, media: str) -> Entry:
    if media != _JSON:
        raise cannot_read(media, hint=f"send it with `Content-Type: {_JSON}`")
    return entry_from(body)


def _single(results: list[Receipt | EntryRefusal]) -> Reply:
    (result,) = results
    if not isinstance(result, Receipt):
        raise result
    return _ok(result)


def _many_of(resources: Resources, body: bytes, *, media: str) -> list[Entry | Invalid]:
    if media != _JSON and media not in _NDJSON:
        raise cannot_read(media, hint=f"send it with `Content-Type: {_JSON}` or `{_NDJSON[0]}`")
    return entries_from(body, ndjson=media in _NDJSON, limit=resources.settings.max_batch_entries)


def _batch(results: list[Receipt | EntryRefusal]) -> Reply:
    refused = sum(not isinstance(result, Receipt) for result in results)
    return _ok({"accepted": len(results) - refused, "refused": refused, "answers": list(map(_result, results))})


def _ok(answer: object) -> Reply:
    body = encode(answer)
    return 200, [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())], body


def _result(result: Receipt | EntryRefusal) -> Receipt | dict[str, object]:
    return result if isinstance(result, Receipt) else {"error": problem_of(result)}


class _Body:
    """The body of one request: its bytes are of the key's share from their arrival to the answer."""

    def __init__(self, shares: Shares, key: str, *, limit: int) -> None:
        self._shares = shares
        self._key = key
        self._limit = limit
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shares.give_back(self._key, self._size)

    async def read(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes:
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._limit:
            raise _too_large(self._limit)
        chunks: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Invalid("the request ended before its body")
            chunks.append(message.get("body", b""))
            if self._size + len(chunks[-1]) > self._limit:
                raise _too_large(self._limit)
            if not self._shares.try_take(self._key, len(chunks[-1])):
                raise Unavailable("too many bodies are under way", hint="send fewer or smaller ones at once", retry_after_s=1)
            self._size += len(chunks[-1])
            if not message.get("more_body"):
                return b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over {limit} bytes", hint="send fewer entries in one request")
