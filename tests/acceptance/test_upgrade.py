"""A folder of the version before Valkey: the product's open sessions go on under the new server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from app.embedded import embedded_servers
from tests.acceptance.serving import folder
from tests.acceptance.system import asked, system, until

USERS = 50


@pytest.fixture
def var_dir() -> Iterator[Path]:
    with folder() as made:
        yield made


@asynccontextmanager
async def _client(var_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The whole product on the embedded servers of this folder."""
    with ExitStack() as stack:
        servers = stack.enter_context(embedded_servers(var_dir, redis=True, postgres=True))
        assert servers.redis_url is not None
        assert servers.database_url is not None

        running = stack.enter_context(system(redis_url=servers.redis_url, database_url=servers.database_url))
        async with running.client() as client:
            yield client


async def _post(client: httpx.AsyncClient, **entry: str) -> list[dict[str, object]]:
    entries = [{"user_id": f"user-{number}", "message_id": f"{entry['text']}-{number}", **entry} for number in range(USERS)]
    answer = await asked(client, "POST", "/v1/bots/shop/messages/batch", entries)
    answers: list[dict[str, object]] = answer["answers"]
    return answers


async def test_open_sessions_outlive_the_change_of_server(
    var_dir: Path, older_redis: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every session opened on Redis 6.2 takes its next entry under Valkey, closes once, and is archived with both entries."""
    del older_redis
    async with _client(var_dir) as client:
        await asked(client, "POST", "/v1/bots", {"id": "shop"})
        opened = [each["session_id"] for each in await _post(client, role="user", text="before")]
    (var_dir / "redis" / "VERSION").unlink()  # that version kept no record
    monkeypatch.undo()
    async with _client(var_dir) as client:
        continued = [each["session_id"] for each in await _post(client, role="user", text="after")]
        await _post(client, role="bot", type="session.end", text="end")

        async def archived() -> bool:
            sessions = [await asked(client, "GET", f"/v1/sessions/{each}") for each in opened]
            return all(session["state"] == "closed" for session in sessions)

        await until(archived)
        transcript = await asked(client, "GET", f"/v1/sessions/{opened[-1]}/messages")

    assert len(set(opened)) == USERS
    assert continued == opened
    assert [message["text"] for message in transcript["messages"]][:2] == ["before", "after"]
