"""The whole app in this process on real servers, a worker whose jobs tests run one by one, and clients by key."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import cache
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from app.archive import keys
from app.config.publish import publish
from app.ids import new_id, new_key
from app.main import create_app
from app.resources import Resources
from app.settings import Settings
from app.worker import Worker

Json = dict[str, Any]


class Client(httpx.AsyncClient):
    """An HTTP client that can insist on success, and on answers that the OpenAPI document knows."""

    async def request(self, method: str, url: httpx.URL | str, **more: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        reply = await super().request(method, url, **more)
        transport = self._transport
        if isinstance(transport, httpx.ASGITransport) and isinstance(transport.app, FastAPI):
            check_documented(transport.app, method, reply)
        return reply

    async def ok(self, method: str, path: str, json: object = None, **more: Any) -> Any:  # noqa: ANN401 - any JSON
        """The answer's JSON (None without a body); fails with what was answered otherwise."""
        reply = await self.request(method, path, json=json, **more)
        assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

    async def refused(self, method: str, path: str, json: object = None, **more: Any) -> Json:  # noqa: ANN401 - httpx's own
        """The problem; fails if it was no refusal, or none of RFC 9457's shape."""
        reply = await self.request(method, path, json=json, **more)
        assert reply.is_client_error, f"{method} {path}: {reply.status_code} {reply.text}"
        assert reply.headers["content-type"] == "application/problem+json"
        problem: Json = reply.json()
        assert problem["status"] == reply.status_code
        assert problem["request_id"] == reply.headers["x-request-id"]
        return problem


def check_documented(app: FastAPI, method: str, reply: httpx.Response) -> None:
    """Fail if a route gives an answer that the document does not say it gives."""
    path = reply.request.url.path
    for template, operations in sorted(app.openapi()["paths"].items(), key=lambda each: "{" in each[0]):
        if template == path and method.lower() not in operations:
            return  # a literal path is no id
        pattern = re.sub(r"\\\{conversation_id\\\}", ".+", re.escape(template))
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", pattern), path) and method.lower() in operations:
            documented = operations[method.lower()]["responses"]
            assert str(reply.status_code) in documented, f"{method} {template} does not document {reply.status_code}"
            return


class ClientMaker(Protocol):
    async def __call__(self, *scopes: str, bots: list[str] | None = None) -> Client: ...


@pytest.fixture
def settings(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url, shards=4, webhook_allow_private=True, redis_timeout_s=5)


@cache
def _document() -> Json:
    """The OpenAPI document: it takes half a second to make, and is the same for the app of each test."""
    return create_app(Settings(redis_url="redis://nowhere", database_url="postgresql://nowhere/db")).openapi()


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    made = create_app(settings)
    made.openapi_schema = _document()
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
def resources(app: FastAPI) -> Resources:
    found: Resources = app.state.resources
    return found


@pytest.fixture
async def worker(resources: Resources) -> AsyncIterator[Worker]:
    made = Worker(resources)
    yield made
    await made.stop()


@pytest.fixture
async def clients(app: FastAPI, resources: Resources) -> AsyncIterator[ClientMaker]:
    """Make a client with a key of these scopes and bots."""
    async with AsyncExitStack() as stack:

        async def make(*scopes: str, bots: list[str] | None = None) -> Client:
            key = new_key()
            async with resources.engine.begin() as conn:
                await keys.create(
                    conn, new_id(resources.clock.now_ms()), key, name=f"test {scopes}", scopes=list(scopes), bots=bots
                )
            assert await resources.config.caught_up(await publish(resources.engine, resources.redis), timeout_s=10)
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            client = Client(transport=transport, base_url="http://test", headers={"authorization": f"Bearer {key}"})
            return await stack.enter_async_context(client)

        yield make


@pytest.fixture
async def admin(clients: ClientMaker) -> Client:
    """A client that may do everything."""
    return await clients("admin", "read", "ingest")
