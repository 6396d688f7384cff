"""The console in Chromium, on `adjourn serve` with a real worker and receiver: the whole story, then every page under axe.

With `SCREENSHOTS=docs/images` in the environment it writes the pictures of docs/console.md anew.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, Response, expect, sync_playwright

from app.console.app import PAGES
from tests.acceptance.serving import serving
from tests.receiver import Receiver

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WAIT_MS = 30_000  # this machine may be busy with other things
MOST_BYTES = 150_000
FITS = "document.documentElement.scrollWidth <= innerWidth"
BYTES = "performance.getEntries().reduce((sum, entry) => sum + (entry.decodedBodySize || 0), 0)"
PAINTED_MS = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
SHIFT = """new Promise(done => {
  setTimeout(() => done(0), 20);  // the observer is not called where nothing shifted
  new PerformanceObserver(list => done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0)))
    .observe({ type: 'layout-shift', buffered: true });
})"""
GOOD_SHIFT, GOOD_PAINT_MS = 0.1, 1_800  # as Lighthouse rates them


@dataclass(frozen=True)
class Picture:
    """A picture of docs/console.md, and the path of its page."""

    name: str
    path: str


@dataclass(frozen=True)
class Mode:
    """A way in which every page is looked at."""

    scheme: Literal["light", "dark"]
    width: int
    height: int
    pictures: tuple[Picture, ...]


MODES = (
    Mode("light", 1200, 900, (Picture("home-light", "/"), Picture("session-light", "/sessions/{session_id}"))),
    Mode("dark", 1200, 900, (Picture("policy-dark", "/bots/{bot}"),)),
    Mode("light", 390, 800, (Picture("live-phone", "/live"),)),
)


class Watched:
    """A page, with all that goes wrong on it and all that it loads."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.responses: list[Response] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self.errors.append(message.text) if message.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("response", self._loaded)

    def _loaded(self, response: Response) -> None:
        self.responses.append(response)

    def violations(self) -> list[str]:
        """The rules of axe that the page breaks, and where. It is evaluated from outside, so the page's policy stays."""
        self.page.evaluate(AXE_SCRIPT)
        found: dict[str, Any] = self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [f"{each['id']}: {node['html']}" for each in found["violations"] for node in each["nodes"]]


@contextmanager
def browsers() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: .ci/run installs it")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("modes", (MODES[:1], pytest.param(MODES, marks=pytest.mark.slow)), ids=("light", "all"))
def test_the_console_in_a_browser(tmp_path: Path, modes: tuple[Mode, ...]) -> None:
    """The story, then every page in light, dark and on a phone: nothing for axe, no error, no other host, at most 150 KB."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with serving(tmp_path / "var", webhook_allow_private="true") as running, browsers() as browser, running.client() as client:
        watched = Watched(browser.new_page(base_url=running.url, viewport={"width": 1200, "height": 800}))
        page = watched.page
        assert f"{running.url}/console/" in running.output
        page.goto("/")
        page.get_by_label("API key").fill(running.key)
        page.get_by_role("button", name="Sign in").click()
        _first_steps(page)
        ids = _story(watched, client)
        _pages(watched, ids, modes=modes, pictures=pictures)

        hosts = {httpx.URL(each.url).netloc for each in watched.responses}
        assert hosts == {httpx.URL(running.url).netloc}
        assert watched.errors == []
    assert {path.stem for path in pictures.glob("*.png")} >= {picture.name for mode in modes for picture in mode.pictures}


def test_the_guide_shows_the_pictures_that_are_taken() -> None:
    """docs/console.md names each, and each is there."""
    guide = Path(__file__).parents[2] / "docs" / "console.md"
    shown = re.findall(r"\((images/[\w-]+\.png)\)", guide.read_text())

    assert {Path(name).stem for name in shown} == {picture.name for mode in MODES for picture in mode.pictures}
    assert all((guide.parent / name).is_file() for name in shown)


def _first_steps(page: Page) -> None:
    """The steps of a new user after the sign-in, as docs/console.md counts them: three clicks to the reason of a close."""
    expect(page.get_by_role("heading", name="Report a first message")).to_be_visible()
    page.get_by_role("button", name="Try it in a sandbox").click()
    page.get_by_role("button", name="Move it forward").click()
    page.get_by_role("link", name="ann").click()
    expect(page.locator("#why + ol")).to_contain_text("nothing came for as long as the policy says")


def _story(watched: Watched, client: httpx.Client) -> dict[str, str]:
    """The first entry, a policy with its preview, countdown, close, explanation, webhook, replay. Give the ids."""
    page = watched.page
    page.goto("/console/")
    client.post("/v1/bots", json={"id": "shop"}).raise_for_status()
    entry = {"user_id": "ann", "role": "user", "text": "Where is my order?", "intent": "order.status"}
    opened = client.post("/v1/bots/shop/messages", json=entry).json()
    expect(page.get_by_role("heading", name="Closing soonest")).to_be_visible(timeout=WAIT_MS)
    assert any("/live/events" in each.url for each in watched.responses)

    page.goto("/console/bots/shop")
    page.get_by_label("inactivity minutes").fill("25")
    expect(page.locator("#effects")).to_contain_text("After 25 minutes of silence", timeout=WAIT_MS)
    page.get_by_role("button", name="Save as version 2").click()
    expect(page.get_by_role("status")).to_contain_text("The policy is saved.")

    page.goto("/console/webhooks")
    with Receiver() as receiver:
        page.get_by_text("Make an endpoint").click()
        page.locator("#new-bot").select_option("shop")
        page.locator("details").get_by_label("url").fill(receiver.url())
        page.get_by_role("button", name="Make it").click()
        expect(page.get_by_role("status")).to_contain_text("whsec_")
        client.post("/v1/bots/shop/messages", json={"user_id": "ann", "role": "bot", "text": "On its way."}).raise_for_status()

        page.goto("/console/live")
        expect(page.locator("[data-countdown]")).to_have_text(re.compile(r"2\d min \d+ s"))
        page.get_by_role("button", name="Close the session of ann").click()
        expect(page.locator("#why + ol")).to_contain_text("it was asked to close (K20)")
        link = page.get_by_role("link", name="session.closed")
        _reload_until(page, lambda: link.count() > 0)
        link.click()
        _reload_until(page, lambda: page.get_by_text("delivered", exact=True).count() > 0)
        page.get_by_role("button", name="Send it again").click()
        expect(page.get_by_role("status")).to_contain_text("queued once more")
    (made,) = client.get("/v1/bots/shop/endpoints").json()["endpoints"]
    delivery = page.url.partition("?")[0].rpartition("/")[2]
    for user in ("bob", "eve"):
        client.post("/v1/bots/shop/messages", json={**entry, "user_id": user}).raise_for_status()
    return {"session_id": opened["session_id"], "bot": "sandbox", "endpoint_id": made["id"], "delivery_id": delivery}


def _pages(watched: Watched, ids: dict[str, str], *, modes: tuple[Mode, ...], pictures: Path) -> None:
    """Every page in every mode, but files to download, and rejects, of which there is none."""
    page = watched.page
    faults: list[str] = []
    paths = [path for path in PAGES if "{kind}" not in path and "{reject_id}" not in path]
    for mode in modes:
        page.emulate_media(color_scheme=mode.scheme)
        page.set_viewport_size({"width": mode.width, "height": mode.height})
        for path in paths:
            page.goto(f"/console{path.format_map(ids)}")
            faults += [f"{path} in {mode.scheme}: {each}" for each in watched.violations()]
            faults += [] if page.evaluate(BYTES) <= MOST_BYTES else [f"{path} is too heavy"]
            faults += [] if page.evaluate(SHIFT) <= GOOD_SHIFT else [f"{path} moves while it loads"]
            faults += [] if len(modes) == 1 or page.evaluate(PAINTED_MS) <= GOOD_PAINT_MS else [f"{path} shows late"]
            faults += [] if page.evaluate(FITS) else [f"{path} is wider than {mode.width}"]
            for picture in mode.pictures:
                if picture.path == path:
                    page.screenshot(path=pictures / f"{picture.name}.png")
    assert faults == []


def _reload_until(page: Page, met: Any) -> None:  # noqa: ANN401 - a function
    for _ in range(60):
        if met():
            return
        page.wait_for_timeout(500)
        page.reload()
    raise AssertionError(page.content())
