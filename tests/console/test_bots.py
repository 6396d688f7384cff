"""Bots, their policies and the sandbox."""

import re
from html import unescape

from tests.api.conftest import Client
from tests.console.conftest import Browser, text_of

PATH = "/console/bots/shop"


async def test_a_bot_is_made_by_a_form(browser: Browser, admin: Client) -> None:
    """It is listed; a name that cannot be is refused in the form, in the API's words."""
    reply = await browser.submit("/console/bots", "/console/bots", id="shop", sandbox="true")
    assert reply.url.path == PATH
    assert (await admin.ok("GET", "/v1/bots/shop"))["sandbox"] is True
    assert ">shop</a>" in await browser.page("/console/bots")

    reply = await browser.submit("/console/bots", "/console/bots", id="No such name")
    assert reply.status_code == 422
    assert 'value="No such name"' in reply.text
    assert "id" in text_of(reply.text)


async def test_bots_and_keys_are_listed_with_their_own_limits(browser: Browser, admin: Client) -> None:
    """By the names of the API; those that the settings give are left out."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "limits": {"rate_entries": 7, "max_endpoints": 3}})
    await admin.ok("POST", "/v1/keys", {"name": "k", "scopes": ["read"], "limits": {"rate_requests": 9}})

    assert "rate_entries 7, max_endpoints 3" in text_of(await browser.page("/console/bots"))
    listed = text_of(await browser.page("/console/keys"))
    assert "rate_requests 9" in listed
    assert "rate_bytes" not in listed


async def test_the_form_has_every_field_of_the_policy(browser: Browser, admin: Client) -> None:
    """It is made from the schema, holds what is saved, and saves the same again."""
    policy = {
        "preset": "kore",
        "inactivity_minutes": 20,
        "reminder": {"minutes": 2, "texts": {"default": "Still there?", "es": "¿Sigue ahí: sí?"}},
        "starts_with": ["connect", "message"],
        "discard_utterances": ["forget it", "stop"],
        "bot_starts": False,
        "channels": {"web": {"inactivity_minutes": 30, "on_resolved": "continue"}},
    }
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": policy})
    page = await browser.page(PATH)
    schemas = (await browser.get("/openapi.json")).json()["components"]["schemas"]
    names = re.findall(r'name="([a-z_.]+)"', page)
    assert {"preset", *schemas["Policy"]["properties"], "closure_message.texts", "reminder.minutes"} <= set(names)

    reply = await browser.submit(PATH, f"{PATH}/policy", **fields_of(page))
    assert "The policy is saved." in reply.text
    saved = await admin.ok("GET", "/v1/bots/shop/policy")
    assert (saved["version"], saved["policy"]) == (2, policy)


async def test_effects_and_differences_are_shown_before_it_is_saved(browser: Browser, admin: Client) -> None:
    """The words and the steps follow the form; nothing is saved; faults are named by their fields."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    reply = await browser.submit(
        PATH, f"{PATH}/preview", inactivity_minutes="25", channels='{"sms": {"inactivity_minutes": 1440}}'
    )
    words = text_of(reply.text)
    assert "After 25 minutes of silence it closes by itself" in words
    assert "after 25 min: closes as" in words
    assert "On sms" in words
    assert "inactivity_minutes 15 25" in words
    assert (await admin.ok("GET", "/v1/bots/shop/policy"))["version"] == 1

    reply = await browser.submit(PATH, f"{PATH}/preview", inactivity_minutes="4", channels="{broken")
    assert reply.status_code == 422
    assert "inactivity_minutes" in text_of(reply.text)
    assert 'value="4"' in reply.text
    assert "{broken" in reply.text


async def test_a_version_that_was_not_read_is_not_overwritten(browser: Browser, admin: Client) -> None:
    """412 with the form as it was typed: another change was faster."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("PUT", "/v1/bots/shop/policy", {"inactivity_minutes": 30}, headers={"if-match": '"1"'})
    reply = await browser.submit(PATH, f"{PATH}/policy", version="1", inactivity_minutes="20")

    assert reply.status_code == 412
    assert "version 2 is the latest" in text_of(reply.text)
    assert (await admin.ok("GET", "/v1/bots/shop/policy"))["policy"] == {"inactivity_minutes": 30}


async def test_versions_are_compared_and_restored(browser: Browser, admin: Client) -> None:
    """The values that differ, with the preset's; restoring makes a new version."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("PUT", "/v1/bots/shop/policy", {"preset": "kore"}, headers={"if-match": '"1"'})
    words = text_of(await browser.page(f"{PATH}/versions?from=1&to=2"))
    assert 'inactivity_clock "any" "user"' in words
    assert "inactivity_minutes" not in words

    reply = await browser.submit(f"{PATH}/versions", f"{PATH}/restore", version="2", restored="1")
    assert "The version is restored as the latest one." in reply.text
    assert (await admin.ok("GET", "/v1/bots/shop/policy"))["version"] == 3
    assert "have the same effect" in text_of(await browser.page(f"{PATH}/versions?from=1&to=3"))


async def test_a_sandbox_plays_a_session(browser: Browser, admin: Client) -> None:
    """An entry opens it, the clock moves over its deadline, and it is closed; an entry that cannot be is refused in the form."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    reply = await browser.submit(f"{PATH}/sandbox", f"{PATH}/sandbox/entry", user_id="ann", role="user", text="Hi")
    assert "session opened" in text_of(reply.text)
    reply = await browser.submit(f"{PATH}/sandbox", f"{PATH}/sandbox/clock", seconds="900")

    assert "1 due on the way" in text_of(reply.text)
    assert '<span class="badge inactivity">' in reply.text
    reply = await browser.submit(f"{PATH}/sandbox", f"{PATH}/sandbox/entry", user_id="ann", role="king")
    assert reply.status_code == 422
    assert "role" in text_of(reply.text)


def fields_of(page: str) -> dict[str, list[str]]:
    """The values that a browser would send of the form of the policy as it is."""
    form = re.search(r"<form[^>]*data-preview.*?</form>", page, re.DOTALL)
    assert form
    values: dict[str, list[str]] = {}
    for name, text in _values(form[0]):
        values.setdefault(name, []).append(text)
    return values


def _values(form: str) -> list[tuple[str, str]]:
    found = re.findall(r'<input [^>]*?name="([^"]+)" (?!type="checkbox")[^>]*?value="([^"]*)"', form)
    found = [(name, text) for name, text in found if f'type="checkbox" name="{name}"' not in form and name != "csrf"]
    found += re.findall(r'type="checkbox" name="([^"]+)" value="([^"]*)" checked', form)
    found += re.findall(r'<textarea [^>]*name="([^"]+)"[^>]*>([^<]*)</textarea>', form)
    for name, options in re.findall(r'<select [^>]*name="([^"]+)"[^>]*>(.*?)</select>', form, re.DOTALL):
        found += [(name, text) for text in re.findall(r'value="([^"]*)" selected', options)]
    return [(name, unescape(text)) for name, text in found]
