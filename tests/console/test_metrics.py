"""The page of metrics: charts without styles and scripts of their own, tables behind them, numbers that lead to lists."""

import re

from app.worker import Worker
from tests.api.conftest import Client
from tests.console.conftest import Browser, text_of


async def test_each_number_is_charted_and_leads_to_its_list(browser: Browser, admin: Client, worker: Worker) -> None:
    """By time, by a dimension, by hour of the week; paths, a funnel, and the history under each definition."""
    assert "No session in this time." in await browser.page("/console/metrics?metric=sessions&dimension=channel")
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for user, channel, intent in (("ann", "web", "order"), ("bob", "web", "order"), ("eve", "sms", "pay")):
        entry = {"user_id": user, "role": "user", "text": "Hi", "channel": channel, "intent": intent}
        opened = await admin.ok("POST", "/v1/bots/shop/messages", entry)
        await admin.ok("POST", f"/v1/sessions/{opened['session_id']}/close")
    await worker.archivist.run_once()
    page = await browser.page("/console/metrics?metric=sessions&time=day&dimension=channel&steps=order,%20pay")

    assert page.count("<svg") == 2
    assert not re.search(r"<style|<script(?! type=\"module\" src)| style=|https?://(?!www\.w3\.org)", page)
    rows = dict(re.findall(r'<th scope="row">(web|sms)</th><td><a href="([^"]+)">', page))
    assert rows.keys() == {"web", "sms"}
    listed = await browser.page(rows["web"].replace("&amp;", "&"))
    assert all(f"<td>{each}</td>" in listed for each in ("ann", "bob"))
    assert "<td>eve</td>" not in listed
    words = text_of(page)
    assert "order 66 % (2 of 3)" in words
    assert "own 3" in words
    assert len(re.findall(r'class="heat-\d"', page)) == 168
    assert page.count('class="heat-5"') in {1, 2, 3}
    await browser.page("/console/metrics?metric=no-such", status=422)
