"""The pages of open and closed sessions, and the page of one with its explanation."""

import re

import pytest

from app.console.app import PAGES
from app.worker import Worker
from tests.api.conftest import Client
from tests.console.conftest import Browser, BrowserMaker, text_of


@pytest.fixture
async def talked(admin: Client, worker: Worker) -> list[str]:
    """A conversation of two sessions on a sandbox bot: closed by silence, 20 minutes later again. Give the ids of both."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True, "clock_mode": "manual"})
    ids = []
    for text in ("Where is my order?", "And <now>?"):
        entry = {"user_id": "ann", "role": "user", "text": text, "intent": "order.status", "session_metadata": {"phone": "1"}}
        opened = await admin.ok("POST", "/v1/bots/shop/messages", entry)
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "bot", "text": "On its way."})
        await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 1200})
        ids.append(opened["session_id"])
    await worker.archivist.run_once()
    return ids


async def test_live_lists_what_is_open_and_closes_it(admin: Client, browser: Browser) -> None:
    """By deadline, with filters; a form closes one, as the key's holder."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for user in ("ann", "bob"):
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": user, "role": "user", "text": "Hi"})
    page = await browser.page("/console/live")
    assert page.count("data-countdown") == 2
    assert "2 open: 2 of shop on web" in text_of(page)
    assert ">ann<" not in await browser.page("/console/live?channel=sms&bot=shop")

    path = re.findall(r'action="(/console/sessions/[^"]+/close)"', page)[page.index(">ann<") > page.index(">bob<")]
    reply = await browser.submit("/console/live", path)

    assert "The session is closed." in reply.text
    assert '<span class="badge api">' in reply.text
    assert ">ann<" not in await browser.page("/console/live")


async def test_the_list_takes_every_filter_of_the_api(browser: Browser, talked: list[str]) -> None:
    """Each parameter is an input; its values stay in the form; one that is out of its limits is refused in the API's words."""
    page = await browser.page("/console/sessions")
    document = (await browser.get("/openapi.json")).json()
    names = {each["name"] for each in document["paths"]["/v1/sessions"]["get"]["parameters"]} - {"cursor", "limit"}
    assert names <= set(re.findall(r'name="([^"]+)"', page))
    assert all(f"/console/sessions/{each}" in page for each in talked)

    query = "?bot=shop&reason=inactivity&reason=api&interactive=true&session_metadata=phone=1&opened_from=2020-01-01T00:00"
    page = await browser.page(f"/console/sessions{query}&column=entries&column=intent&channel=")
    assert all(f"/console/sessions/{each}" in page for each in talked)
    assert 'value="inactivity" checked' in page
    assert 'value="2020-01-01T00:00"' in page
    assert '<th scope="col">entries</th><th scope="col">intent</th></tr>' in page
    assert talked[0] not in await browser.page("/console/sessions?session_metadata=phone=2")
    assert "integer" in text_of(await browser.page("/console/sessions?policy_version=x", status=422))


async def test_the_pages_of_the_list_lead_on(browser: Browser, talked: list[str]) -> None:
    """The link keeps the filters."""
    page = await browser.page("/console/sessions?limit=1&bot=shop&order=opened_at")
    assert talked[0] in page
    assert talked[1] not in page
    (following,) = re.findall(r'rel="next" href="([^"]+)"', page)

    assert talked[1] in await browser.page(f"/console/sessions{following.replace('&amp;', '&')}")


async def test_the_list_is_exported_as_it_is_filtered(browser: Browser, talked: list[str]) -> None:
    """The link of the page gives the file of the API."""
    page = await browser.page("/console/sessions?user_id=ann&bot=shop")
    (link,) = re.findall(r'href="(/console/sessions\.csv[^"]+)"', page)
    reply = await browser.get(link.replace("&amp;", "&"))

    assert reply.headers["content-type"].startswith("text/csv")
    assert reply.headers["content-disposition"] == 'attachment; filename="sessions.csv"'
    assert [line.split(",")[0] for line in reply.text.splitlines()[1:]] == talked
    assert len((await browser.get("/console/sessions.ndjson?user_id=nobody-such")).text) == 0


async def test_one_session_shows_why_it_is_so(browser: Browser, talked: list[str]) -> None:
    """The explanation, the transcript between its boundaries, the picture, the conversation and the metadata."""
    page = await browser.page(f"/console/sessions/{talked[1]}")
    words = text_of(page)

    assert "the user said something (B04)" in words
    assert "nothing came for as long as the policy says (K07)" in words
    assert words.index("Opened 20") < words.index("And <now>?") < words.index("On its way.") < words.index("Closed 20")
    assert "<now>" not in page
    assert page.count("<circle") == 2
    assert f"/console/sessions/{talked[0]}" in page
    assert "phone" in words


async def test_another_silence_is_decided_again(browser: Browser, talked: list[str]) -> None:
    """Twenty minutes lay between the two sessions: under 30 they are one, under 20 they are two."""
    path = f"/console/sessions/{talked[0]}"

    assert "with 30 minutes of silence: 1 session instead of 2" in text_of(await browser.page(f"{path}?minutes=30"))
    assert "with 20 minutes of silence: 2 sessions instead of 2" in text_of(await browser.page(f"{path}?minutes=20"))


async def test_things_of_another_bot_are_no_pages(browsers: BrowserMaker, talked: list[str]) -> None:
    """404, as for a session that does not exist, on each page that names one thing; 403 without the scope."""
    stranger = await browsers("admin", "read", "ingest", bots=["bank"])
    without = await browsers("ingest")
    paths = [path.replace("{session_id}", talked[0]) for path in PAGES if "{session_id}" in path]

    assert paths
    for path in paths:
        await stranger.page(f"/console{path}", status=404)
        await without.page(f"/console{path}", status=403)
    assert (await stranger.submit("/console/", f"/console/sessions/{talked[0]}/close")).status_code == 404


async def test_a_view_is_saved_for_the_key(admin: Client, browser: Browser, browsers: BrowserMaker) -> None:
    """Filters and columns come back after the sign-out, under their name, for this key alone, until the view is deleted."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    query = "bot=shop&outcome=dropped&column=entries"
    reply = await browser.submit(f"/console/sessions?{query}", "/console/sessions/views", name="mine & <his>", query=query)
    assert "The view is saved for this key." in reply.text
    assert str(reply.url).startswith(f"http://test/console/sessions?{query}&")
    await browser.post("/console/sign-out")
    await browser.post("/console/sign-in", data={"key": browser.key})
    page = await browser.page("/console/sessions")

    assert f'<a href="?{query.replace("&", "&amp;")}">mine &amp; &lt;his&gt;</a>' in page
    assert "mine" not in await (await browsers("read")).page("/console/sessions")
    reply = await browser.submit("/console/sessions", "/console/sessions/views/delete", name="mine & <his>")
    assert "mine" not in reply.text
    assert (await browser.submit("/console/sessions", "/console/sessions/views/delete", name="mine")).status_code == 404
