"""Every list of the API ends its pages by bytes as well as by count, and loses no row by it."""

import re
from typing import Any

import pytest
from fastapi import FastAPI

from app.api import paging
from app.archive import rejects
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client, ClientMaker, Json

HOUR_S = 3600
NAMED = {"/v1/live": {"bot": "shop"}}
"""Parameters without which a list has no rows of a sandbox bot."""


@pytest.fixture
async def filled(admin: Client, clients: ClientMaker, worker: Worker, resources: Resources) -> dict[str, str]:
    """Three rows or more in each list; the values that their paths need."""
    for bot in ("shop", "box", "third"):
        await admin.ok("POST", "/v1/bots", {"id": bot, "sandbox": True, "clock_mode": "manual"})
        await admin.ok("POST", f"/v1/bots/{bot}/endpoints", {"url": "http://127.0.0.1:9999/", "events": ["session.closed"]})
        await clients("read")
    for minutes in (10, 20):
        policy = await admin.get("/v1/bots/shop/policy")
        changed = {"inactivity_minutes": minutes}
        await admin.ok("PUT", "/v1/bots/shop/policy", changed, headers={"If-Match": policy.headers["etag"]})
    for _ in range(3):
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "nobody", "role": "bot", "type": "survey.sent"})
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "text": "hi"})
        await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": HOUR_S})
        await worker.archivist.run_once()
    for user in ("sue", "tim", "zoe"):
        await admin.ok("DELETE", f"/v1/bots/shop/users/{user}")
    session = ""
    for user, channel in (("bob", "web"), ("eve", "sms"), ("joe", "api")):
        entry = {"user_id": user, "channel": channel, "role": "user", "text": "hi"}
        batch = await admin.ok("POST", "/v1/bots/shop/messages/batch", [entry, entry, entry])
        session = batch["answers"][0]["session_id"]
    async with resources.engine.begin() as conn:
        for _ in range(3):
            await rejects.add(conn, bot="shop", session_id=None, error="no UTF-8", payload=b"x")
    return {"bot": "shop", "user_id": "ann", "conversation_id": "web:ann", "session_id": session}


def lists_of(app: FastAPI) -> list[str]:
    """The paths of all routes that take a cursor."""
    return [
        path
        for path, operations in app.openapi()["paths"].items()
        if any(each["name"] == "cursor" for each in operations.get("get", {}).get("parameters", ()))
    ]


async def walk(admin: Client, path: str) -> list[list[Any]]:
    """The rows of each page."""
    pages: list[list[Any]] = []
    cursor: Json = {}
    while not pages or cursor:
        page = await admin.ok("GET", path, params=NAMED.get(path, {}) | cursor)
        pages.append(next(value for value in reversed(page.values()) if isinstance(value, list)))
        cursor = {"cursor": page["next"]} if page["next"] else {}
    return pages


async def test_pages_of_every_list_end_by_their_bytes(
    app: FastAPI, admin: Client, filled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one row a page, each list has as many pages as rows, and the same rows in the same order."""
    for template in lists_of(app):
        path = re.sub(r"{(\w+)}", lambda name: filled[name[1]], template)
        (rows,) = await walk(admin, path)
        with monkeypatch.context() as patch:
            patch.setattr(paging, "LARGEST_PAGE", 1)
            pages = await walk(admin, path)

        assert len(rows) >= 3, path
        assert [row for page in pages for row in page] == rows, path
        assert max(map(len, pages)) == 1, path
