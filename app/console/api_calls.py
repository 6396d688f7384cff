"""Calls of the API's routes within this process, as the key that signed in.

A call passes through the whole app, its limits, its checks of scope and bot, and its validation. So the console cannot show or
change more than the same key can by HTTP.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import httpx
from msgspec import Struct, json
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config.records import SIGNED_IN

Json = dict[str, Any]
Query = Mapping[str, str | int] | Sequence[tuple[str, str]]


class Refusal(Exception):
    """A problem that the API answered."""

    def __init__(self, problem: Json) -> None:
        super().__init__(problem["detail"])
        self.status: int = problem["status"]
        self.problem = problem


class ApiReply(Struct, frozen=True):
    """A successful answer."""

    body: Any  # its JSON; None without a body
    etag: str | None


class ApiCalls:
    """The API as one key, for one request of a browser."""

    def __init__(self, api: ASGIApp, *, digest: bytes, outer: Scope) -> None:
        self._api = api
        self._given = {SIGNED_IN: digest, "client": outer.get("client")}
        self._request_id = str(outer.get("adjourn.request_id", ""))

    async def get(self, path: str, query: Query | None = None) -> Any:  # noqa: ANN401 - any JSON
        """The answer's JSON. Raise `Refusal`."""
        return (await self.call("GET", path, query=query)).body

    async def allowed(self, path: str, query: Query | None = None) -> Any:  # noqa: ANN401 - any JSON
        """The answer's JSON; None where the key may not have it. Raise `Refusal` otherwise."""
        try:
            return await self.get(path, query)
        except Refusal as refusal:
            if refusal.status != httpx.codes.FORBIDDEN:
                raise
            return None

    async def text(self, path: str) -> str:
        return (await self._send("GET", path)).text

    async def call(
        self, method: str, path: str, body: object = None, *, query: Query | None = None, headers: Mapping[str, str] | None = None
    ) -> ApiReply:
        """Call any route. Raise `Refusal`."""
        reply = await self._send(method, path, body, query=query, headers=headers)
        content: Any = json.decode(reply.content) if reply.content else None
        if reply.is_error and "detail" in content:
            raise Refusal(content)
        return ApiReply(content, reply.headers.get("etag"))

    async def pass_on(self, path: str, query: Query, *, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a browser's GET with the answer of a route, as a stream."""
        asked = {"path": path, "raw_path": path.encode(), "root_path": "", "query_string": str(_parameters(query)).encode()}
        await self._api({**scope, **self._given, **asked}, receive, send)

    async def _send(
        self, method: str, path: str, body: object = None, *, query: Query | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        content = None if body is None else json.encode(body)
        sent = {"content-type": "application/json", "x-request-id": self._request_id, **(headers or {})}
        request = httpx.Request(method, f"http://console{path}", params=_parameters(query or {}), headers=sent, content=content)
        reply = await httpx.ASGITransport(self._as_key).handle_async_request(request)
        reply.request = request
        await reply.aread()
        return reply

    async def _as_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api({**scope, **self._given}, receive, send)


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """The results of calls that run at once. The first failure is raised when all have ended, so none is left behind."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _parameters(query: Query) -> httpx.QueryParams:
    return httpx.QueryParams(dict(query) if isinstance(query, Mapping) else list(query))


class PassedOn(Response):
    """An answer of the API to a GET, passed on as it comes."""

    def __init__(self, api: ApiCalls, path: str, query: Query) -> None:
        super().__init__()
        self._api, self._path, self._query = api, path, query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._api.pass_on(self._path, self._query, scope=scope, receive=receive, send=send)
