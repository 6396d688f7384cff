"""The installation of one scenario: its own servers, processes, listening sockets, webhook receiver, bots and key."""

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

from app.archive.engine import make_engine, migrate
from app.config.publish import publish
from app.delivery.secret_box import new_secrets_key
from app.embedded import embedded_servers
from app.embedded.postgres_server import PostgresServer
from app.embedded.redis_server import RedisServer
from app.ids import key_digest, new_id, new_key, new_webhook_secret, shown_prefix
from app.live import keys
from app.supervisor.serve import bind
from tests.faults.processes import Part, Process, Processes, processes
from tests.faults.requests import Caller
from tests.receiver import Receiver

MINUTE_MS = 60_000
SILENCE_MS = 15 * MINUTE_MS
# The shortest leases, so that many rounds fit in the time; promises are stated in leases.
SETTINGS: dict[str, object] = {
    "tick_ms": 100,
    "archive_claim_idle_ms": 1_000,
    "shard_lease_ms": 2_000,
    "delivery_timeout_s": 1,
    "delivery_lease_margin_ms": 4_000,
    "webhook_allow_private": True,
    "log_level": "WARNING",
    "shutdown_grace_s": 5,
    "secrets_key": new_secrets_key(),
    # A scenario sends as much as it can from one key.
    "rate_entries": 0,
    "rate_bytes": 0,
    "rate_requests": 0,
}
CLAIM_LEASE_S = 1.0
SHARD_LEASE_S = 2.0
DELIVERY_LEASE_S = 5.0
START_S = 60.0
POLL_S = 0.05
_TRACE = re.compile(r"^Traceback (?:.*\n)+?[\w.]+(?:Error|Exception|Interrupt|Cancelled)\b.*$", re.MULTILINE)
SUBSCRIBED = ("session.closed", "session.continuation", "session.updated")


@dataclass
class Installation:
    """Everything of one scenario. Its API processes share the socket on `port`."""

    redis: RedisServer
    postgres: PostgresServer
    processes: Processes
    receiver: Receiver
    port: int
    key: str
    folder: Path
    # A socket without a process yet, for an API process that gets requests of its own.
    apart: socket.socket
    endpoints: dict[str, str] = field(default_factory=dict)  # id to secret

    def at(self, port: int) -> "Installation":
        """The same with an API that listens elsewhere."""
        return replace(self, port=port)

    def caller(self) -> Caller:
        return Caller("127.0.0.1", self.port, key=self.key)

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[AsyncEngine]:
        """A short-lived engine of the harness, since the server is stopped and started."""
        engine = make_engine(self.postgres.url, pool_size=2, statement_timeout_s=60)
        try:
            yield engine
        finally:
            await engine.dispose()

    async def start(self, part: Part, *, armed: str = "", **options: Any) -> Process:  # noqa: ANN401 - as of `Processes.fork`
        """Start a process, and wait until it works; one with a failpoint may never come so far, and is not waited for."""
        process = await self.processes.fork(part, armed=armed, **options)
        if not armed:
            await self._until_ready(part, process)
        return process

    async def revive(self, server: RedisServer | PostgresServer) -> None:
        """Start a server again; the traffic goes on meanwhile, since only this coroutine waits."""
        server.launch()
        await asyncio.to_thread(server.wait_ready)

    async def _until_ready(self, part: Part, process: Process) -> None:
        async with asyncio.timeout(START_S):
            while not (process.ready.is_set() or process.over.is_set()):
                await asyncio.sleep(POLL_S)
                if part == "worker" and await self._has_heartbeat(process.pid):
                    process.ready.set()
        assert process.status is None, f"the {part} ended while it started: {process.status}"

    async def _has_heartbeat(self, pid: int) -> bool:
        async with self.live() as client:
            return any(name.endswith(b"-%d" % pid) for name in await client.hkeys(keys.HEARTBEATS))

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

    async def make_bot(self, bot: str, *, clock: str | None = "manual", subscribed: bool = True, **policy: object) -> str:
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
        if subscribed:
            await self.make_endpoint(bot, self.receiver.url(f"/{bot}"))
        await self.publish()
        return bot

    async def make_endpoint(self, bot: str, url: str, *, events: Sequence[str] = SUBSCRIBED) -> str:
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
        """The unexpected exceptions in the logs of the processes."""
        logs = [path.read_text(errors="replace") for path in (self.folder / "log").glob("*.log")]
        return [found[0][-2_000:] for log in logs for found in _TRACE.finditer(log)]

    async def publish(self) -> None:
        async with self.engine() as engine, self.live() as client:
            await publish(engine, client)

    async def move_clock(self, bot: str, *, to_ms: int) -> None:
        """Set a sandbox clock forward without the API, which would sweep at once: here the workers do it."""
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
            await asyncio.to_thread(migrate, servers.postgres.url)
            listening = stack.enter_context(bind("127.0.0.1", 0))
            apart = stack.enter_context(bind("127.0.0.1", 0))
            receiver = stack.enter_context(Receiver())
            of_run = {
                "redis_url": redis_url or servers.redis.url,
                "database_url": servers.postgres.url,
                "secrets_key": new_secrets_key(),
            }
            chosen = SETTINGS | of_run | settings
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
    """Print the ends of the logs before the folder is removed; pytest shows them if the test failed."""
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
