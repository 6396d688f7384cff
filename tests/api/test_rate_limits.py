"""Rates of a key and of a bot: refused beyond it, reported in headers, and nothing of a batch lost unsaid."""

import pytest

from app.settings import Settings
from tests.api.conftest import Client, ClientMaker

ENTRY = {"user_id": "ann", "role": "user", "text": "hi"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"rate_entries": 1, "rate_bytes": 10_000, "rate_requests": 2, "max_bots": 2, "max_keys": 4})


async def test_a_batch_is_cut_at_the_rate(admin: Client, clients: ClientMaker) -> None:
    """The first entries are taken, each of the rest is refused with the reason, and the next request with `Retry-After`."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots", {"id": "bank"})

    batch = await admin.post("/v1/bots/shop/messages/batch", json=[ENTRY] * 15)
    refused = await admin.post("/v1/bots/shop/messages", json=ENTRY)
    other_key = await (await clients("ingest")).post("/v1/bots/shop/messages", json=ENTRY)
    neither = await (await clients("ingest")).post("/v1/bots/bank/messages", json=ENTRY)

    answers = batch.json()["answers"]
    assert (batch.status_code, batch.json()["accepted"]) == (200, 10)
    assert ["error" in answer for answer in answers] == [False] * 10 + [True] * 5
    assert {answer["error"]["code"] for answer in answers[10:]} == {"rate_limited"}
    assert batch.headers["ratelimit-policy"] == '"entries";q=10;w=10, "bytes";q=100000;w=10'
    assert batch.headers["ratelimit"].startswith('"entries";r=0;t=10')
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert (other_key.status_code, neither.status_code) == (429, 200)


async def test_bytes_count_too(admin: Client) -> None:
    """Of 100,000 bytes that may come at once, three entries of 30,000 are three, and the fourth is refused."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    long = ENTRY | {"text": "x" * 30_000}

    replies = [await admin.post("/v1/bots/shop/messages", json=long) for _ in range(4)]

    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]


async def test_other_requests_have_a_rate_of_their_own(admin: Client, clients: ClientMaker) -> None:
    """It is the key's: another key is answered, and entries do not count."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    replies = [await admin.get("/v1/bots") for _ in range(25)]

    assert replies[0].headers["ratelimit-policy"] == '"requests";q=20;w=10'
    assert 429 in {reply.status_code for reply in replies}
    assert (await (await clients("read")).get("/v1/sessions")).status_code == 200
    assert (await admin.post("/v1/bots/shop/messages", json=ENTRY)).status_code == 200


async def test_bots_and_keys_have_a_quota(admin: Client) -> None:
    """One that is deleted or revoked makes room for another."""
    new_key = {"name": "k", "scopes": ["read"]}
    for bot in ("shop", "bank"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
    made = [await admin.ok("POST", "/v1/keys", new_key) for _ in range(3)]  # beside the admin's own

    assert (await admin.refused("POST", "/v1/bots", {"id": "third"}))["status"] == 409
    assert (await admin.refused("POST", "/v1/keys", new_key))["status"] == 409

    await admin.ok("DELETE", "/v1/bots/bank")
    await admin.ok("DELETE", f"/v1/keys/{made[0]['id']}")

    await admin.ok("POST", "/v1/bots", {"id": "third"})
    await admin.ok("POST", "/v1/keys", new_key)
