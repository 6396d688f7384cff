"""The page `/docs` in a real browser, which has no network but this machine's."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.serving import serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# Nothing of its own accord: in a closed network each of these is refused, over and over.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: .ci/run installs it")
def test_the_page_shows_every_route_and_webhook(tmp_path: Path) -> None:
    """Its scripts and styles come from here, under a policy that forbids anything else, and it finds the document."""
    with serving(tmp_path / "var") as running, running.client() as client:
        document = client.get("/openapi.json").json()
        page = _rendered(f"{running.url}/docs", profile=tmp_path / "profile")

    shown = re.findall(r'class="opblock-summary-path" data-path="([^"]+)"', page)
    described = document["paths"] | document["webhooks"]
    assert set(shown) == set(described)
    assert len(shown) == sum(len(methods) for methods in described.values())


def _rendered(url: str, *, profile: Path) -> str:
    """The page as the browser shows it after its scripts have run."""
    command = [CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--user-data-dir={profile}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout
