"""A worker on real servers, with jobs that tests run one by one."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from app.archive.tables import instant
from app.closing.archivist import Archivist
from app.closing.rejects import RejectLimit
from app.config.publish import publish
from app.live.event_stream import EventStream
from app.live.pipe import Pipe
from app.resources import Resources, open_resources
from app.settings import Settings
from app.worker import Worker


@pytest.fixture
async def resources(redis_url: str, database_url: str) -> AsyncIterator[Resources]:
    settings = Settings(redis_url=redis_url, database_url=database_url, shards=4, archive_claim_idle_ms=100)
    async with open_resources(settings) as opened:
        yield opened


@pytest.fixture
async def worker(resources: Resources) -> AsyncIterator[Worker]:
    made = Worker(resources)
    yield made
    await made.stop()


SaveBot = Callable[..., Awaitable[None]]


@pytest.fixture
def save_bot(resources: Resources) -> SaveBot:
    """Save a bot, or a new version of its policy; when this returns, the process knows it."""

    async def save(bot: str, *, version: int, minutes: int, sandbox: bool = False, effective_at_ms: int = 0) -> None:
        async with resources.engine.begin() as conn:
            await conn.execute(
                text(
                    "INSERT INTO bots (id, name, sandbox, clock_mode) VALUES (:bot, :bot, :sandbox, :mode) ON CONFLICT DO NOTHING"
                ),
                {"bot": bot, "sandbox": sandbox, "mode": "manual" if sandbox else None},
            )
            await conn.execute(
                text(
                    "INSERT INTO policies (bot_id, version, policy, effective_at) VALUES (:bot, :version, :policy, :at)"
                ).bindparams(bindparam("policy", type_=JSONB)),
                {"bot": bot, "version": version, "policy": {"inactivity_minutes": minutes}, "at": instant(effective_at_ms)},
            )
        mark = await publish(resources.engine, resources.redis)
        assert await resources.config.caught_up(mark, timeout_s=5)

    return save


@pytest.fixture
async def other(resources: Resources) -> AsyncIterator[Archivist]:
    """Another worker's archivist, which takes over what was left for a moment."""
    pipe = Pipe(resources.redis, timeout_s=5)
    shards = resources.settings.shards
    yield Archivist(
        pipe=pipe,
        streams=EventStream(pipe=pipe, shards=shards, consumer="other", batch=100, claim_idle_ms=0),
        engine=resources.engine,
        shards=shards,
        rules_of=resources.config.rules_of,
        reject_limit=RejectLimit(percent=5),
    )
    await pipe.stop()
