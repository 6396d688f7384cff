"""Lists, analytics and exports go to DATABASE_READ_URL; all that changes something, and all that admins read, to DATABASE_URL."""

import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.embedded import Servers
from app.resources import Resources
from app.settings import Settings
from app.worker import Worker
from tests.api.conftest import Client


@pytest.fixture
async def settings(settings: Settings, servers: Servers, template_database: str) -> AsyncIterator[Settings]:
    """Settings with a replica that lags: it has the schema, and nothing that the test writes."""
    assert servers.postgres is not None
    name = f"replica_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(user="postgres", database="postgres", host=str(servers.postgres.sockets))
    await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template_database}"')
    yield settings.model_copy(update={"database_read_url": servers.postgres.url_of(name)})
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close()


async def test_queries_read_the_replica_and_admins_what_they_wrote(admin: Client, resources: Resources, worker: Worker) -> None:
    """The replica has no session yet; the bot, which was made just now, is there."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for kind in ("message", "session.end"):
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "type": kind, "text": "hello"})
    await worker.archivist.run_once()
    async with resources.engine.connect() as primary:
        archived = await primary.scalar(text("SELECT count(*) FROM sessions"))

    listed = await admin.ok("GET", "/v1/sessions?bot=shop")
    counted = await admin.ok("GET", "/v1/analytics/sessions?metrics=sessions")
    exported = await admin.get("/v1/exports/sessions?format=ndjson")

    assert archived == 1
    assert listed["sessions"] == []
    assert sum(group["metrics"]["sessions"]["value"] for group in counted["groups"]) == 0
    assert exported.status_code == 200, exported.text
    assert exported.text == ""
    assert [bot["id"] for bot in (await admin.ok("GET", "/v1/bots"))["bots"]] == ["shop"]


async def test_nothing_is_written_to_the_replica(resources: Resources) -> None:
    """Its connections refuse to write, also where the server is no replica."""
    with pytest.raises(DBAPIError, match="read-only"):
        async with resources.read_engine.begin() as conn:
            await conn.execute(text("DELETE FROM bots"))
