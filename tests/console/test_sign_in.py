"""Signing in and out: the cookie, forged cookies and forms, revocation, and that pages follow the scopes of the API."""

import re

import httpx
from fastapi import FastAPI

from app.config.publish import publish
from app.console.app import ACTIONS, PAGES, STREAMS
from app.console.sign_in import COOKIE, COOKIE_LIFE_S
from app.console.visit import NAVIGATION
from app.domain.instants import rfc3339
from app.resources import Resources
from tests.api.conftest import Client
from tests.console.conftest import Browser, BrowserMaker

KEYS = ((), ("ingest",), ("read",), ("admin",), ("admin", "read", "ingest"))

OTHERWISE = {"/bots/{bot}/sandbox": {"ingest"}}
"""Pages for other keys than the page of the navigation that they are below."""


async def test_the_root_leads_to_the_sign_in(browsers: BrowserMaker) -> None:
    """A browser without a cookie sees the form, under a policy that allows nothing from elsewhere and nothing inline."""
    stranger = await browsers()
    reply = await stranger.get("/")

    assert reply.url.path == "/console/sign-in"
    assert reply.status_code == 200
    assert "unsafe" not in reply.headers["content-security-policy"]
    assert not re.search(r"<script(?! type=\"module\" src)| style=| on\w+=|https?://", reply.text)


async def test_the_cookie_is_closed_to_scripts_and_other_sites(browsers: BrowserMaker, app: FastAPI) -> None:
    """It does not hold the key, and over TLS it is for TLS alone."""
    known = await browsers("read")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="https://test") as client:
        reply = await client.post("/console/sign-in", data={"key": known.key})
        cookie = reply.headers["set-cookie"]

    assert known.key not in cookie
    assert {"HttpOnly", "SameSite=lax", "Secure", "Path=/console"} <= set(cookie.split("; "))


async def test_an_unknown_key_is_refused(browsers: BrowserMaker) -> None:
    """401, and no cookie."""
    stranger = await browsers()
    reply = await stranger.post("/console/sign-in", data={"key": "adj_wrong"})

    assert reply.status_code == 401
    assert "not known" in reply.text
    assert not stranger.cookies


async def test_a_changed_or_old_cookie_is_no_sign_in(browser: Browser, resources: Resources) -> None:
    """Each part of it is signed, and it ends with its life."""
    cookie = browser.cookies[COOKIE]
    parts = cookie.split(".")
    for index, part in enumerate(parts):
        changed = [*parts[:index], ("1" if part[0] != "1" else "2") + part[1:], *parts[index + 1 :]]
        browser.cookies.set(COOKIE, ".".join(changed), domain="test.local", path="/console")
        reply = await browser.get("/console/", headers={"cookie": f"{COOKIE}={'.'.join(changed)}"}, follow_redirects=False)
        assert reply.headers["location"].startswith("/console/sign-in"), index

    resources.clock._offset_ms += COOKIE_LIFE_S * 1000
    reply = await browser.get("/console/", follow_redirects=False)
    assert reply.headers["location"].startswith("/console/sign-in")


async def test_revocation_signs_out_everywhere(browser: Browser, admin: Client, resources: Resources) -> None:
    """The next request after the key was revoked, by whichever process, is sent to the sign-in."""
    (own,) = [key for key in (await admin.ok("GET", "/v1/keys"))["keys"] if browser.key.startswith(key["prefix"])]
    await admin.ok("DELETE", f"/v1/keys/{own['id']}")
    assert await resources.config.caught_up(await publish(resources.engine, resources.redis), timeout_s=2)

    reply = await browser.get("/console/", follow_redirects=False)
    assert reply.headers["location"] == "/console/sign-in"


async def test_an_expired_key_is_signed_out(browsers: BrowserMaker, admin: Client, resources: Resources) -> None:
    """At the instant at which the API refuses it, its cookie is worth nothing, and it signs in no more."""
    made = await admin.ok("POST", "/v1/keys", {"name": "a day", "scopes": ["ingest"], "expires_at": "2100-01-01T00:00:00Z"})
    browser = await browsers()
    assert (await browser.post("/console/sign-in", data={"key": made["key"]})).url.path == "/console/"
    changed = {"expires_at": rfc3339(resources.clock.now_ms() + 60_000)}
    await admin.ok("PATCH", f"/v1/keys/{made['id']}", changed)
    resources.clock._offset_ms += 61_000

    assert (await browser.get("/console/")).url.path == "/console/sign-in"
    assert (await browser.post("/console/sign-in", data={"key": made["key"]})).status_code == 401


async def test_signing_out_forgets_the_cookie(browser: Browser) -> None:
    """The page after it is the sign-in."""
    reply = await browser.post("/console/sign-out")

    assert reply.url.path == "/console/sign-in"
    assert COOKIE not in browser.cookies


async def test_a_sign_in_leads_to_pages_of_the_console_only(browser: Browser) -> None:
    """A link to the sign-in cannot lead to another site."""
    for wanted in ("https://evil.example/", "//evil.example", "/console/\\evil", "/console/\nevil", "/v1/bots", "javascript:1"):
        reply = await browser.post("/console/sign-in", data={"key": browser.key, "next": wanted}, follow_redirects=False)
        assert reply.headers["location"] == "/console/", wanted


async def test_a_shared_address_opens_after_the_sign_in(browsers: BrowserMaker, browser: Browser) -> None:
    """The address with its filters goes through the sign-in."""
    stranger = await browsers()
    reply = await stranger.get("/console/?a=1&b=2")

    assert 'name="next" value="/console/?a=1&amp;b=2"' in reply.text
    reply = await stranger.post("/console/sign-in", data={"key": browser.key, "next": "/console/?a=1&b=2"})
    assert str(reply.url) == "http://test/console/?a=1&b=2"


async def test_a_forged_form_does_nothing(browser: Browser) -> None:
    """403 without the token of the sign-in, with another one, and from another site."""
    for path in ACTIONS:
        address = "/console" + re.sub(r"\{\w+\}", "x", path)
        assert (await browser.post(address, data={})).status_code == 403, path
        assert (await browser.post(address, data={"csrf": "0" * 64})).status_code == 403, path
        assert (await browser.post(address, headers={"sec-fetch-site": "cross-site"})).status_code == 403, path


async def test_the_sign_in_of_another_site_is_refused(browser: Browser) -> None:
    """Another site cannot sign a browser in, out, or change its theme."""
    for path in ("sign-in", "sign-out", "theme"):
        reply = await browser.post(f"/console/{path}", data={"key": browser.key}, headers={"sec-fetch-site": "cross-site"})
        assert reply.status_code == 403, path


async def test_the_theme_is_kept_without_a_script(browser: Browser) -> None:
    """The button is a form; its answer is the page in the other theme."""
    reply = await browser.post("/console/theme", data={"theme": "dark", "next": "/console/"})

    assert 'data-theme="dark"' in reply.text
    assert 'data-theme="light"' not in await browser.page("/console/")


async def test_the_api_takes_no_sign_in_from_outside(browser: Browser) -> None:
    """The cookie opens the console alone, and no header stands for a sign-in."""
    headers = {"cookie": f"{COOKIE}={browser.cookies[COOKIE]}", "adjourn.signed_in": "1"}
    reply = await browser.get("/v1/bots", headers=headers)

    assert reply.status_code == 401


async def test_every_page_follows_the_scopes(browsers: BrowserMaker) -> None:
    """The navigation names exactly the pages that the key may open; a page below one is for the same keys."""
    for scopes in KEYS:
        browser = await browsers(*scopes)
        for path in PAGES:
            top = "/" + re.split(r"[/.]", path)[1]
            (wanted,) = [OTHERWISE.get(path, wanted) for address, _, wanted in NAVIGATION if address == top]
            found = {200, 404} if "{" in path else {200}
            reply = await browser.get(f"/console{re.sub(r'{(?P<name>[a-z_]+)}', 'csv', path)}", follow_redirects=False)
            assert reply.status_code in (found if wanted & set(scopes) else {403} if scopes else {303}), f"{scopes}: {path}"


async def test_events_are_for_those_who_may_read(browsers: BrowserMaker) -> None:
    """The stream is refused as a page is."""
    for scopes, status in (((), 303), (("ingest", "admin"), 403)):
        browser = await browsers(*scopes)
        for path in STREAMS:
            assert (await browser.get(f"/console{path}", follow_redirects=False)).status_code == status
