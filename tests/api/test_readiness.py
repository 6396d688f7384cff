"""`/readyz`: whether entries are taken, and everything that is not as it should be, by name."""

from collections.abc import AsyncIterator, Mapping

import pytest
from fastapi import FastAPI

from app.live import keys
from app.live.server import warnings_of
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client, ClientMaker


@pytest.fixture
async def restored(resources: Resources) -> AsyncIterator[None]:
    """Put back what a test changes of the run's Redis."""
    yield
    await resources.pipe.call("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.fixture
async def client(clients: ClientMaker, worker: Worker) -> Client:
    await worker.jobs()["heartbeat"][0]()
    return await clients("read")


async def test_all_is_well(client: Client) -> None:
    """Every check says ok, and so does the whole."""
    answer = await client.get("/readyz", params={"strict": True})

    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "checks": {"redis": "ok", "durability": "ok", "configuration": "ok", "postgres": "ok", "worker": "ok", "archive": "ok"},
    }


@pytest.mark.usefixtures("restored")
async def test_a_redis_that_evicts_is_named(client: Client, resources: Resources) -> None:
    """Entries are taken all the same, so a plain look says 200; a strict one says 503."""
    await resources.pipe.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

    plain = await client.get("/readyz")
    strict = await client.get("/readyz", params={"strict": True})

    assert (plain.status_code, strict.status_code) == (200, 503)
    assert plain.json()["status"] == "degraded"
    assert "maxmemory-policy is allkeys-lru" in plain.json()["checks"]["durability"]


async def test_an_archivist_that_stopped_is_named(client: Client, resources: Resources) -> None:
    """Entries are taken all the same: closed sessions wait in Redis."""
    await resources.redis.set(keys.ARCHIVE_STOPPED, "10 of the last 12 records were rejected", px=30_000)

    answer = await client.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["checks"]["archive"] == "10 of the last 12 records were rejected"


async def test_readiness_falls_as_soon_as_a_stop_begins(client: Client, app: FastAPI) -> None:
    """Before the listener closes: a load balancer sends no more requests here."""
    app.state.draining = True

    answer = await client.get("/readyz")

    assert (answer.status_code, answer.json()["status"]) == (503, "draining")


@pytest.mark.parametrize(
    ("found", "expected", "words"),
    (
        ({"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}, "always", ""),
        ({"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always"}, "everysec", ""),
        ({"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}, "always", "appendfsync is everysec"),
        ({"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "no"}, "everysec", "appendfsync is no"),
        ({"maxmemory-policy": "noeviction", "appendonly": "no", "appendfsync": "always"}, "no", "appendonly is off"),
        (
            {"maxmemory-policy": "volatile-ttl", "appendonly": "yes", "appendfsync": "no"},
            "no",
            "maxmemory-policy is volatile-ttl",
        ),
        ({}, "always", ""),
    ),
)
def test_each_shortcoming_is_told_once(found: Mapping[str, str], expected: str, words: str) -> None:
    """A setting at least as strong as expected gives no warning, nor does one that cannot be read."""
    shown = warnings_of(found, appendfsync=expected)

    assert [words in sentence for sentence in shown] == ([True] if words else [])
