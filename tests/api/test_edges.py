"""Headers of answers, browsers of other origins, and routes for operators behind a key."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from app.worker import Worker
from tests.api.conftest import Client

ORIGIN = "https://console.example"


@asynccontextmanager
async def anonymous(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key of an app with these settings."""
    app = create_app(settings)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as it:
        yield it


async def test_answers_are_neither_stored_nor_framed_nor_guessed_at(admin: Client) -> None:
    """A new key, a refusal and the page of the API alike; only what needs a key is never stored."""
    made = await admin.post("/v1/keys", json={"name": "k", "scopes": ["read"]})
    refused = await admin.get("/v1/bots/none", headers={"authorization": "Bearer adj_x"})
    docs = await admin.get("/docs")

    assert made.headers["cache-control"] == "no-store"
    for answer in (made, refused, docs):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "strict-transport-security" not in answer.headers


async def test_only_origins_of_the_settings_may_call_from_a_browser(settings: Settings) -> None:
    """The browser asks first, without a key; another origin gets no leave."""
    allowing = settings.model_copy(update={"cors_origins": f"{ORIGIN}, https://other.example", "hsts_max_age_s": 600})
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
    async with anonymous(allowing) as client:
        allowed = await client.options("/v1/bots", headers={"origin": ORIGIN} | asked)
        foreign = await client.options("/v1/bots", headers={"origin": "https://evil.example"} | asked)
        health = await client.get("/healthz")

    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-origin" not in foreign.headers
    assert health.headers["strict-transport-security"] == "max-age=600"


async def test_no_origin_may_call_by_default(admin: Client) -> None:
    """A page of any other site reads nothing, even where its visitor can reach this server."""
    answer = await admin.get("/v1/bots", headers={"origin": ORIGIN})

    assert "access-control-allow-origin" not in answer.headers


async def test_metrics_and_docs_may_need_a_key(admin: Client, settings: Settings) -> None:
    """By setting: metrics one that reads all bots, the document any."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    keys = [
        (await admin.ok("POST", "/v1/keys", {"name": "k", "scopes": scopes, "bots": bots}))["key"]
        for scopes, bots in ((["read"], None), (["read"], ["shop"]), (["ingest"], None))
    ]
    async with anonymous(settings.model_copy(update={"metrics_need_key": True, "docs_need_key": True})) as client:
        answers = {
            path: [(await client.get(path, headers={"authorization": f"Bearer {key}"})).status_code for key in ("", *keys)]
            for path in ("/metrics", "/openapi.json", "/docs", "/healthz")
        }

    assert answers == {
        "/metrics": [401, 200, 403, 403],
        "/openapi.json": [401, 200, 200, 200],
        "/docs": [401, 200, 200, 200],
        "/healthz": [200] * 4,
    }


async def test_an_unchanged_answer_is_not_sent_again(admin: Client, worker: Worker) -> None:
    """By its `ETag`: definitions, the document, a policy by its version's tag, and a session until a late entry comes."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    session = (await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "text": "hi"}))["session_id"]
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    await worker.archivist.run_once()
    paths = ("/v1/analytics/definitions", "/openapi.json", "/v1/bots/shop/policy", f"/v1/sessions/{session}")
    for path in paths:
        first = await admin.get(path)
        again = await admin.get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
        changed = await admin.get(path, headers={"if-none-match": '"other"'})
        assert (first.status_code, again.status_code, changed.status_code) == (200, 304, 200), path
        assert (again.content, again.headers["etag"]) == (b"", first.headers["etag"])
        assert not {"content-length", "content-type", "content-encoding"} & again.headers.keys()

    known = {"if-none-match": (await admin.get(paths[-1])).headers["etag"]}
    await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "bot", "type": "survey.sent"})
    await worker.archivist.run_once()

    assert (await admin.get(paths[-1], headers=known)).json()["late_entries"] == 1
    assert "etag" not in (await admin.get("/v1/exports/sessions")).headers


def test_a_certificate_without_its_key_is_refused() -> None:
    """Neither half works alone, and http instead of https would be a surprise."""
    with pytest.raises(ValueError, match="belong together"):
        Settings(tls_cert_file=Path("cert.pem"))


async def test_metrics_and_docs_may_have_a_port_of_their_own(settings: Settings) -> None:
    """Each path is on one of the two ports, the probes are on both; nothing else is on theirs, entries neither."""
    own = ("/metrics", "/docs", "/openapi.json", "/docs/assets/swagger-ui.css")
    others = ("/v1/bots", "/console/", "/v1/bots/shop/messages", "/docsx", "/")
    app = create_app(settings.model_copy(update={"operations_port": 9100}))
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        answers = {
            port: [(await client.get(f"http://t:{port}{path}")).status_code for path in (*own, *others, "/healthz")]
            for port in (8000, 9100)
        }

    assert answers[9100] == [200, 200, 200, 200, *[404] * 5, 200]
    assert answers[8000][:4] == [404] * 4
    assert 404 not in {*answers[8000][4:7], answers[8000][-1]}
