"""The fixtures of the API's tests, and browsers without a screen: clients that keep cookies and send forms."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from html.parser import HTMLParser

import httpx
import pytest
from fastapi import FastAPI

from app.archive import keys
from app.config.publish import publish
from app.ids import new_id, new_key
from app.resources import Resources
from tests.api.conftest import admin, app, clients, resources, settings, worker

__all__ = ["admin", "app", "clients", "resources", "settings", "worker"]


class Browser(httpx.AsyncClient):
    """A client that follows redirects and sends the forms of its pages with their tokens."""

    key: str

    async def page(self, path: str, *, status: int = 200) -> str:
        """The text of a page; fails if it is answered otherwise."""
        reply = await self.get(path)
        assert reply.status_code == status, f"{path}: {reply.status_code} {reply.text}"
        return reply.text

    async def submit(self, path: str, to: str, **fields: str | list[str]) -> httpx.Response:
        """Send a form as a page shows it, with the token that it finds there."""
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', await self.page(path))
        assert token, f"{path} has no form"
        return await self.post(to, data={"csrf": token[1], **fields})


BrowserMaker = Callable[..., Awaitable[Browser]]


@pytest.fixture
async def browsers(app: FastAPI, resources: Resources) -> AsyncIterator[BrowserMaker]:
    """Make a browser that signed in with a key of these scopes and bots; without a scope it did not sign in."""
    async with AsyncExitStack() as stack:

        async def make(*scopes: str, bots: list[str] | None = None) -> Browser:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            made = await stack.enter_async_context(Browser(transport=transport, base_url="http://test", follow_redirects=True))
            if scopes:
                made.key = new_key()
                async with resources.engine.begin() as conn:
                    id_ = new_id(resources.clock.now_ms())
                    await keys.create(conn, id_, made.key, name=f"test {scopes}", scopes=list(scopes), bots=bots)
                assert await resources.config.caught_up(await publish(resources.engine, resources.redis), timeout_s=10)
                reply = await made.post("/console/sign-in", data={"key": made.key})
                assert reply.url.path == "/console/"
            return made

        yield make


@pytest.fixture
async def browser(browsers: BrowserMaker) -> Browser:
    """A browser that signed in with a key for everything."""
    return await browsers("admin", "read", "ingest")


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def text_of(page: str) -> str:
    """The words of a page without its markup."""
    parser = _Texts()
    parser.feed(page)
    return re.sub(r"\s+", " ", " ".join(parser.texts))
