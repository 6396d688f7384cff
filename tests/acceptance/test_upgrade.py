"""A folder of the version before Valkey: the product's open sessions go on under the new server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.archive.engine import migrate_async
from app.config.change import open_keyring
from app.embedded import embedded_servers
from app.main import create_app
from app.settings import Settings
from app.worker import Worker
from tests.acceptance.serving import folder
from tests.acceptance.system import asked

USERS = 50
BATCH = "/v1/bots/shop/messages/batch"


@pytest.fixture
def var_dir() -> Iterator[Path]:
    with folder() as made:
        yield made


@asynccontextmanager
async def _product(var_dir: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Worker]]:
    """The app and a worker whose jobs the test runs, on the embedded servers of this folder."""
    with embedded_servers(var_dir, redis=True, postgres=True) as servers:
        settings = Settings(redis_url=servers.redis_url, database_url=servers.database_url, redis_timeout_s=5)
        assert settings.database_url is not None

        await migrate_async(settings.database_url)
        async with open_keyring(database_url=settings.database_url, redis_url=settings.redis_url) as keyring:
            key = await keyring.create("test", scopes=["admin", "ingest", "read"], for_bots=[])
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            worker = Worker(app.state.resources)
            transport, headers = httpx.ASGITransport(app), {"authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
                yield client, worker
            await worker.stop()


async def _post(client: httpx.AsyncClient, name: str, **entry: str) -> list[dict[str, Any]]:
    entries = [{"user_id": f"user-{number}", "message_id": f"{name}-{number}", **entry} for number in range(USERS)]
    answers: list[dict[str, Any]] = (await asked(client, "POST", BATCH, entries))["answers"]
    return answers


async def test_open_sessions_outlive_the_change_of_server(
    var_dir: Path, older_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every session opened on Redis 6.2 takes its next entry under Valkey, closes once, and is archived with all its entries."""
    del older_redis
    async with _product(var_dir) as (client, _):
        await asked(client, "POST", "/v1/bots", {"id": "shop"})
        opened = [each["session_id"] for each in await _post(client, "first", role="user", text="before")]
    (var_dir / "redis" / "VERSION").unlink()  # that version kept no record
    monkeypatch.undo()
    async with _product(var_dir) as (client, worker):
        repeated = [(each["session_id"], each["duplicate"]) for each in await _post(client, "first", role="user", text="before")]
        continued = [each["session_id"] for each in await _post(client, "second", role="user", text="after")]
        ended = [each["closed"][0]["session_id"] for each in await _post(client, "third", role="bot", type="session.end")]
        await worker.archivist.run_once()
        sessions = [await asked(client, "GET", f"/v1/sessions/{each}") for each in opened]
        transcript = await asked(client, "GET", f"/v1/sessions/{opened[-1]}/messages")

    assert len(set(opened)) == USERS
    assert repeated == [(each, True) for each in opened]
    assert continued == ended == opened
    assert {session["status"] for session in sessions} == {"closed"}
    assert [message.get("text") for message in transcript["messages"]][:2] == ["before", "after"]
