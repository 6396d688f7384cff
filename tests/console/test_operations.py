"""Webhooks, keys, the audit log, rejected records and the state of the system, on pages and by forms."""

import re

from app.archive import rejects
from app.metrics import UNACCOUNTED
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client
from tests.console.conftest import Browser, BrowserMaker, text_of
from tests.receiver import Receiver


async def test_an_endpoint_from_its_making_to_its_end(browser: Browser, admin: Client) -> None:
    """Its secret is shown once; it is tested, gets a new secret, is disabled and deleted."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    with Receiver() as receiver:
        reply = await browser.submit(
            "/console/webhooks", "/console/webhooks", bot="shop", url=receiver.url(), events="session.closed"
        )
        assert "whsec_" in reply.text
        (endpoint,) = (await admin.ok("GET", "/v1/bots/shop/endpoints"))["endpoints"]
        assert endpoint["events"] == ["session.closed"]
        path = f"/console/webhooks/endpoints/{endpoint['id']}"
        assert "whsec_" not in await browser.page(path)

        assert "It answered with 200" in text_of((await browser.submit(path, f"{path}/test")).text)
    assert "It failed" in text_of((await browser.submit(path, f"{path}/test")).text)
    assert "whsec_" in (await browser.submit(path, f"{path}/rotate")).text
    reply = await browser.submit(path, f"{path}/rotate")
    assert (reply.status_code, "whsec_" in reply.text) == (409, False)
    assert "It is changed." in (await browser.submit(path, path, enabled="false")).text
    assert "disabled" in text_of(await browser.page("/console/webhooks"))
    assert (await browser.submit(path, f"{path}/delete")).url.path == "/console/webhooks"
    await browser.page(path, status=404)


async def test_an_endpoint_that_cannot_be_stays_in_the_form(browser: Browser, admin: Client) -> None:
    """422, with the address as it was typed."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    reply = await browser.submit("/console/webhooks", "/console/webhooks", bot="shop", url="ftp://elsewhere")

    assert reply.status_code == 422
    assert 'value="ftp://elsewhere"' in reply.text


async def test_a_delivery_shows_its_attempts_and_is_sent_again(
    browser: Browser, admin: Client, worker: Worker, resources: Resources
) -> None:
    """The body, each attempt with its reply, the status as filter, and the replay."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    with Receiver() as receiver:
        await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": receiver.url()})
        opened = await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "text": "Hi"})
        await admin.ok("POST", f"/v1/sessions/{opened['session_id']}/close")
        await worker.archivist.run_once()
        worker.dispatcher.start()
        await worker.dispatcher.run_once(resources.clock.now_ms())
        await worker.dispatcher.idle()
        (sent, *_) = (await admin.ok("GET", "/v1/deliveries?status=delivered"))["deliveries"]
        path = f"/console/webhooks/deliveries/{sent['id']}"
        assert path in await browser.page(f"/console/sessions/{opened['session_id']}")
        page = await browser.page(path)
        assert '<span class="badge delivered">' in page
        assert '<th scope="row">1</th>' in page
        assert opened["session_id"] in page

        reply = await browser.submit(path, f"{path}/replay")
    assert "It is queued once more." in reply.text
    assert path in await browser.page("/console/webhooks?status=pending")
    assert path not in await browser.page("/console/webhooks?status=failed")


async def test_a_key_is_shown_once_and_revoked(browser: Browser, browsers: BrowserMaker, admin: Client) -> None:
    """It signs in until it is revoked; a key that cannot be stays in the form; the audit log names each change."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    fields = {"name": "analyst", "scopes": "read", "bots": "shop", "expires_at": "2100-01-01T00:00"}
    reply = await browser.submit("/console/keys", "/console/keys", **fields)
    (key,) = re.findall(r"adj_[\w-]{43,}", reply.text)
    other = await browsers()
    assert (await other.post("/console/sign-in", data={"key": key})).url.path == "/console/"
    assert key not in await browser.page("/console/keys")

    made = next(each for each in (await admin.ok("GET", "/v1/keys"))["keys"] if each["name"] == "analyst")
    assert made["expires_at"] == "2100-01-01T00:00:00.000Z"
    reply = await browser.submit("/console/keys", f"/console/keys/{made['id']}/revoke")
    assert "The key is revoked." in reply.text
    assert (await other.get("/console/live")).url.path == "/console/sign-in"
    assert (await browser.submit("/console/keys", "/console/keys", name="x")).status_code == 422
    words = text_of(await browser.page("/console/audit?bot=shop"))
    assert words.index("key.revoked") < words.index("key.created") < words.index("bot.created")


async def test_a_reject_is_shown_and_archived_again(browser: Browser, resources: Resources) -> None:
    """Its record and error are on its page; without rejects the page says so."""
    assert "No record was rejected." in await browser.page("/console/rejects")
    async with resources.engine.begin() as conn:
        await rejects.add(conn, bot="shop", session_id=None, error="<refused>", payload=b"\xc1")
    page = await browser.page("/console/rejects")
    (path,) = set(re.findall(r"/console/rejects/\d+", page))
    assert "&lt;refused&gt;" in page
    assert "wQ==" in await browser.page(path)

    # Bytes that nothing can read cannot be archived, and stay.
    assert (await browser.submit(path, f"{path}/replay")).status_code == 409
    assert (await browser.submit("/console/rejects", "/console/rejects/replay")).status_code == 200


async def test_the_system_page_shows_each_check_and_metric(browser: Browser, resources: Resources) -> None:
    """Readiness is the API's, also where it is not ready; each metric has its meaning."""
    UNACCOUNTED.set(3)
    resources.clock._offset_ms += 2_000  # metrics are read once a second
    words = text_of(await browser.page("/console/system"))
    checks = (await browser.get("/readyz")).json()["checks"]

    assert all(f"{name} {state}" in words for name, state in checks.items())
    assert "unaccounted for 3" in words
    assert "Sessions open now" in words
    UNACCOUNTED.set(0)
