"""What a scenario stands on: real servers of its own, processes, where the API listens, a webhook receiver, bots and a key."""

import asyncio
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis.asyncio as redis_client
from msgspec import json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import migrate
from app.archive.engine import make_engine
from app.config.publish import publish
from app.embedded import PostgresServer, RedisServer, embedded_servers
from app.ids import key_digest, new_id, new_key, new_webhook_secret, shown_prefix
from app.live import keys
from app.supervisor import listener
from tests.faults.processes import Processes, processes
from tests.faults.requests import Caller
from tests.receiver import Receiver

MINUTE_MS = 60_000
SILENCE_MS = 15 * MINUTE_MS
# Leases as short as they may be, so that many rounds fit in the time; what is promised is told in leases.
SETTINGS: dict[str, object] = {
    "tick_ms": 100,
    "archive_claim_idle_ms": 1_000,
    "shard_lease_ms": 2_000,
    "delivery_timeout_s": 1,
    "delivery_lease_margin_ms": 4_000,
    "webhook_allow_private": True,
    "log_level": "WARNING",
    "shutdown_grace_s": 5,
}
CLAIM_LEASE_S = 1.0
SHARD_LEASE_S = 2.0
DELIVERY_LEASE_S = 5.0
_TRACE = re.compile(r"^Traceback (?:.*\n)+?[\w.]+(?:Error|Exception|Interrupt|Cancelled)\b.*$", re.MULTILINE)
TOLD = ("session.closed", "session.continuation")


@dataclass
class Installation:
    """Everything of one scenario. `url` is where the API answers, whichever process serves it."""

    redis: RedisServer
    postgres: PostgresServer
    processes: Processes
    receiver: Receiver
    port: int
    key: str
    folder: Path
    # Where nobody listens yet: for an API process that is to be talked to alone.
    apart: socket.socket
    endpoints: dict[str, str] = field(default_factory=dict)  # id to secret

    def at(self, port: int) -> "Installation":
        """The same with an API that listens elsewhere."""
        return replace(self, port=port)

    def caller(self) -> Caller:
        return Caller("127.0.0.1", self.port, key=self.key)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[AsyncEngine]:
        """A connection of the harness's own; a short-lived one, since the server comes and goes."""
        engine = make_engine(self.postgres.url, pool_size=2, statement_timeout_s=60)
        try:
            yield engine
        finally:
            await engine.dispose()

    async def rows(self, statement: str, **parameters: object) -> list[Any]:
        async with self.engine() as engine, engine.begin() as conn:
            result = await conn.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []

    @asynccontextmanager
    async def live(self) -> AsyncIterator[Any]:
        """A client of the live Redis, undecoded; typed as redis-py's own forms of a reply would need a cast at each."""
        client: Any = redis_client.Redis.from_url(self.redis.url, protocol=2, socket_timeout=30)
        try:
            yield client
        finally:
            await client.aclose()

    async def make_bot(self, bot: str, *, clock: str | None = "manual", told: bool = True, **policy: object) -> str:
        """A bot with an endpoint at the receiver's `/<bot>`; `clock` None for one that goes by real time."""
        await self.rows(
            "INSERT INTO bots (id, name, sandbox, clock_mode) VALUES (:bot, :bot, :sandbox, :clock)",
            bot=bot,
            sandbox=clock is not None,
            clock=clock,
        )
        await self.rows(
            "INSERT INTO policies (bot_id, version, policy, effective_at) "
            "VALUES (:bot, 1, CAST(:policy AS jsonb), to_timestamp(0))",
            bot=bot,
            policy=json.encode(policy or {"inactivity_minutes": 15}).decode(),
        )
        if told:
            await self.make_endpoint(bot, self.receiver.url(f"/{bot}"))
        await self.publish()
        return bot

    async def make_endpoint(self, bot: str, url: str, *, events: Sequence[str] = TOLD) -> str:
        endpoint, secret = new_id(0), new_webhook_secret()
        await self.rows(
            "INSERT INTO endpoints (id, bot_id, url, events, secret) VALUES (:id, :bot, :url, :events, :secret)",
            id=endpoint,
            bot=bot,
            url=url,
            events=list(events),
            secret=secret,
        )
        self.endpoints[endpoint] = secret
        return endpoint

    def traces(self) -> list[str]:
        """The exceptions that nobody foresaw, as the processes' logs have them."""
        logs = [path.read_text(errors="replace") for path in (self.folder / "log").glob("*.log")]
        return [found[0][-2_000:] for log in logs for found in _TRACE.finditer(log)]

    async def publish(self) -> None:
        async with self.engine() as engine, self.live() as client:
            await publish(engine, client)

    async def move_clock(self, bot: str, *, to_ms: int) -> None:
        """Set a sandbox clock forward behind the API's back, which would sweep at once: here the workers shall."""
        async with self.live() as client:
            await client.set(keys.sandbox_clock(bot), to_ms)


@asynccontextmanager
async def installation(*, redis_url: str | None = None, **settings: object) -> AsyncIterator[Installation]:
    """Fresh servers with every flush on, a migrated database, no process yet. `redis_url`: through a proxy, for example."""
    # Not pytest's own folder: a socket's path must fit in 104 bytes.
    folder = Path(tempfile.mkdtemp(prefix="adj-"))
    try:
        async with AsyncExitStack() as stack:
            servers = stack.enter_context(embedded_servers(folder, redis=True, postgres=True))
            assert servers.redis is not None
            assert servers.postgres is not None
            await asyncio.to_thread(migrate.upgrade, servers.postgres.url)
            listening = stack.enter_context(listener.bind("127.0.0.1", 0))
            apart = stack.enter_context(listener.bind("127.0.0.1", 0))
            receiver = stack.enter_context(Receiver())
            chosen = SETTINGS | {"redis_url": redis_url or servers.redis.url, "database_url": servers.postgres.url} | settings
            running = await stack.enter_async_context(
                processes(
                    descriptor=listening.fileno(),
                    apart=(apart.fileno(),),
                    settings={name.upper(): str(value) for name, value in chosen.items()},
                    logs=folder / "log",
                )
            )
            port = int(listening.getsockname()[1])
            made = Installation(servers.redis, servers.postgres, running, receiver, port, new_key(), folder, apart)
            await _save_key(made)
            yield made
            _show_logs(folder / "log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _show_logs(folder: Path) -> None:
    """What the processes said last, before the folder goes; pytest shows it where a test failed."""
    for path in sorted(folder.glob("*.log")):
        sys.stderr.write(f"--- {path.name}\n{path.read_text(errors='replace')[-4_000:]}\n")


async def _save_key(made: Installation) -> None:
    await made.rows(
        "INSERT INTO api_keys (id, name, digest, prefix, scopes) VALUES (:id, 'faults', :digest, :prefix, :scopes)",
        id=new_id(0),
        digest=key_digest(made.key),
        prefix=shown_prefix(made.key),
        scopes=["ingest", "read", "admin"],
    )
    await made.publish()
