"""The first page, from the empty installation to sessions that closed and webhooks that were given up."""

import asyncio
import re
from typing import Any

import pytest

from app.console.api_calls import ApiCalls, ApiReply
from app.console.app import REFRESH_HEADER, REFRESH_LIFE_S
from app.console.pages import STATIC
from app.metrics import UNACCOUNTED
from tests.api.conftest import Client
from tests.console.conftest import Browser, BrowserMaker, text_of

ENTRY = {"user_id": "ann", "role": "user", "text": "Hello"}


async def test_an_empty_installation_shows_how_to_begin(admin: Client, browser: Browser) -> None:
    """The lines to copy name this server and, once there is one, the bot; with the first entry they make way for its session."""
    page = await browser.page("/console/")
    assert "curl http://test/v1/bots " in page

    await admin.ok("POST", "/v1/bots", {"id": "pharmacy"})
    page = await browser.page("/console/")
    assert "curl http://test/v1/bots " not in page
    assert "/v1/bots/pharmacy/messages" in page
    assert "data-live" in page

    await admin.ok("POST", "/v1/bots/pharmacy/messages", ENTRY)
    page = await browser.page("/console/")
    assert "/v1/bots/pharmacy/messages" not in page
    assert "data-countdown" in page


async def test_it_counts_what_is_open_and_lists_what_closed(admin: Client, browser: Browser) -> None:
    """Open sessions of all bots, the next to close first, and the closed ones with the reason."""
    await admin.ok("POST", "/v1/bots", {"id": "slow", "policy": {"inactivity_minutes": 60}})
    await admin.ok("POST", "/v1/bots", {"id": "quick", "policy": {"inactivity_minutes": 5}})
    for bot, user in (("slow", "ann"), ("quick", "bob"), ("quick", "<eve>")):
        await admin.ok("POST", f"/v1/bots/{bot}/messages", ENTRY | {"user_id": user})
    await admin.ok("POST", "/v1/bots/slow/messages", ENTRY | {"user_id": "dora"})
    await admin.ok("POST", "/v1/bots/slow/users/dora/close")
    UNACCOUNTED.set(0)
    page = await browser.page("/console/")

    assert "Open now 3" in text_of(page)
    assert "Unaccounted for 0" in text_of(page)
    assert page.index(">bob<") < page.index(">ann<") < page.index(">dora<")
    assert "&lt;eve&gt;" in page
    assert "<eve>" not in page
    assert '<span class="badge api">api</span>' in page


async def test_a_key_of_one_bot_sees_that_bot(admin: Client, browsers: BrowserMaker) -> None:
    """Nothing of another bot is on the page."""
    for bot in ("shop", "bank"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
        await admin.ok("POST", f"/v1/bots/{bot}/messages", ENTRY | {"user_id": f"{bot}-user"})
    page = await (await browsers("admin", "read", bots=["shop"])).page("/console/")

    assert "shop-user" in page
    assert "bank" not in page


async def test_a_key_that_cannot_read_is_not_shown_sessions(admin: Client, browsers: BrowserMaker) -> None:
    """It reads how to report entries, which it can."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots/shop/messages", ENTRY)
    page = await (await browsers("ingest")).page("/console/")

    assert "/v1/bots/shop/messages" in page
    assert "ann<" not in page


async def test_open_pages_refresh_from_one_rendering(
    admin: Client, browsers: BrowserMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refreshes of one key within a second are rendered once, each with its own sign-in's token; another key's are its own."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots/shop/messages", ENTRY)
    first, second, stranger = await browsers("read"), await browsers(), await browsers("ingest")
    await second.post("/console/sign-in", data={"key": first.key})
    sent: list[str] = []
    call = ApiCalls.call

    async def counted(self: ApiCalls, method: str, path: str, *more: Any, **named: Any) -> ApiReply:  # noqa: ANN401 - its own
        sent.append(path)
        return await call(self, method, path, *more, **named)

    monkeypatch.setattr(ApiCalls, "call", counted)
    refresh = {REFRESH_HEADER: "1"}
    replies = await asyncio.gather(*(browser.get("/console/", headers=refresh) for browser in [first, second] * 5))
    pages = [reply.text for reply in replies]
    tokens = [re.findall(r'name="csrf" value="([0-9a-f]+)"', page) for page in pages]

    assert sent.count("/v1/live") == 1
    assert tokens[0] != tokens[1]
    assert tokens[::2] == [tokens[0]] * 5
    assert "ann<" in pages[1]
    assert "ann<" not in (await stranger.get("/console/", headers=refresh)).text
    await first.page("/console/")
    assert sent.count("/v1/live") == 2 + 1


def test_a_shared_rendering_is_never_from_before_an_event() -> None:
    """A page waits longer after an event than a rendering is shared, so what it gets was rendered after the event."""
    soon = re.search(r"^const SOON_MS = (\d+);", (STATIC / "console.js").read_text(), re.MULTILINE)

    assert soon is not None
    assert int(soon[1]) >= REFRESH_LIFE_S * 1000
