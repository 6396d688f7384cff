"""The replica: every process knows what is saved in Postgres, even if Redis loses the copy in between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from app.api.auth import principal_of
from app.archive.engine import make_engine
from app.clock import Clock
from app.config import key_usage
from app.config.follower import ConfigReplica
from app.config.key_usage import KeyUsage
from app.config.publish import publish, stored_mark
from app.config.records import BotLimits
from app.domain.records import SessionQuota
from app.errors import Unauthenticated, Unavailable
from app.live import keys

DIGEST = sha256(b"adj_one").digest()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, protocol=2, socket_timeout=1)
    yield client
    await client.aclose()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = make_engine(database_url, pool_size=4)
    yield made
    await made.dispose()


@asynccontextmanager
async def following(redis: Redis, defaults: BotLimits | None = None) -> AsyncIterator[ConfigReplica]:
    config = ConfigReplica(redis, defaults or BotLimits())
    await config.start()
    try:
        yield config
    finally:
        await config.stop()


async def run(engine: AsyncEngine, *statements: str, **values: object) -> None:
    async with engine.begin() as conn:
        for statement in statements:
            await conn.execute(text(statement), {"digest": DIGEST} if ":digest" in statement else values)


ADD_BOT = "INSERT INTO bots (id, name) VALUES ('shop', 'Shop')"
ADD_POLICY = """INSERT INTO policies (bot_id, version, policy, effective_at)
                VALUES ('shop', 1, '{"inactivity_minutes"\\: 20}', '2026-11-21')"""
ADD_KEY = """INSERT INTO api_keys (id, name, digest, prefix, scopes, bots)
             VALUES (gen_random_uuid(), 'one', :digest, 'adj_on', '{ingest,read}', '{shop}')"""
ADD_ENDPOINT = """INSERT INTO endpoints (id, bot_id, url, events, secret)
                  VALUES (gen_random_uuid(), 'shop', 'https\\://example.org', '{session.closed}', 'whsec_x')"""


@pytest.mark.parametrize("kind", (ConfigReplica, KeyUsage))
async def test_a_stop_ends_also_where_a_call_swallows_the_cancellation(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, kind: type[ConfigReplica | KeyUsage]
) -> None:
    """A client of Redis may answer a cancellation with an error of its own; the task went on, and its process never ended."""
    calls = asyncio.Semaphore(0)

    async def swallowing(_: object) -> bool:
        calls.release()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return False

    monkeypatch.setattr(key_usage, "_EVERY_S", 0)
    monkeypatch.setattr(kind, "run_once", swallowing)
    config = ConfigReplica(redis)
    part = config if kind is ConfigReplica else KeyUsage(config, redis, Clock())
    started = part.start()
    if started is not None:
        await started
    await calls.acquire()

    stopping = asyncio.create_task(part.stop())
    if kind is KeyUsage:
        await calls.acquire()  # what is left is sent after the task has ended
        stopping.cancel()
    done, _ = await asyncio.wait([stopping], timeout=20)

    assert done


async def test_limits_reach_every_process(engine: AsyncEngine, redis: Redis) -> None:
    """A bot's and a key's own limits hold, also if they are changed later; the others are those of the process's settings."""
    defaults = BotLimits(max_endpoints=20, session_max_entries=100)
    async with following(redis, defaults) as one, following(redis, defaults) as other:
        await run(engine, ADD_BOT, ADD_KEY)
        before = await publish(engine, redis)
        known = [await config.caught_up(before, timeout_s=2) for config in (one, other)]
        assert [config.limits_of("shop") for config in (one, other)] == [defaults] * 2
        await run(
            engine,
            """UPDATE bots SET limits = '{"session_max_entries"\\: 7, "of_a_newer_version"\\: 1}'""",
            """UPDATE api_keys SET limits = '{"rate_entries"\\: 3}'""",
        )
        mark = await publish(engine, redis)
        known += [await config.caught_up(mark, timeout_s=2) for config in (one, other)]

        assert (known, mark.revision - before.revision) == ([True] * 4, 2)
        for config in (one, other):
            key = config.key(DIGEST)
            assert key is not None
            assert key.limits == {"rate_entries": 3}
            assert config.limits_of("shop") == BotLimits(max_endpoints=20, session_max_entries=7)
            assert config.rules_of("shop").quota == SessionQuota(7, 0)
            assert config.rules_of("unknown").quota == SessionQuota(100, 0)


async def test_a_saved_configuration_is_known_to_every_process(engine: AsyncEngine, redis: Redis) -> None:
    """A bot, its policy, a key and an endpoint reach two processes that were running before."""
    async with following(redis) as one, following(redis) as other:
        await run(engine, ADD_BOT, ADD_POLICY, ADD_KEY, ADD_ENDPOINT)
        mark = await publish(engine, redis)
        both = [await config.caught_up(mark, timeout_s=2) for config in (one, other)]

        assert both == [True, True]
        for config in (one, other):
            bot, key = config.bot("shop"), config.key(DIGEST)
            assert bot is not None
            assert (bot.rules.policy.version, bot.rules.policy.policy.inactivity_minutes) == (1, 20)
            assert bot.subscribed == {"session.closed"}
            assert key is not None
            assert key.scopes == {"ingest", "read"}
            assert key.bots == frozenset({"shop"})


async def test_a_change_is_known_within_two_seconds(engine: AsyncEngine, redis: Redis) -> None:
    """A second version of the policy, a revoked key, a disabled endpoint and a deleted bot, each by plain SQL."""
    await run(engine, ADD_BOT, ADD_POLICY, ADD_KEY, ADD_ENDPOINT)
    async with following(redis) as config:
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)

        await run(engine, "INSERT INTO policies VALUES ('shop', 2, '{\"inactivity_minutes\"\\: 30}', now())")
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)
        bot = config.bot("shop")
        assert bot is not None
        assert (bot.rules.policy.version, bot.rules.policy.policy.inactivity_minutes) == (2, 30)

        await run(engine, "UPDATE api_keys SET revoked_at = now()", "UPDATE endpoints SET enabled = false")
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)
        bot = config.bot("shop")
        assert config.key(DIGEST) is None
        assert bot is not None
        assert bot.subscribed == frozenset()

        await run(engine, "UPDATE bots SET deleted_at = now()")
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)
        assert config.bot("shop") is None
        assert config.bot_or_deleted("shop") is not None  # its open sessions still have to close


async def test_an_emptied_redis_is_filled_again_and_no_process_forgets_meanwhile(engine: AsyncEngine, redis: Redis) -> None:
    """FLUSHALL loses no bot and no key: processes go on with their replicas, and the next publication writes the copy again."""
    await run(engine, ADD_BOT, ADD_POLICY, ADD_KEY)
    async with following(redis) as config:
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)

        await redis.flushall()
        assert await stored_mark(redis) is None
        assert config.bot("shop") is not None

        await run(engine, "UPDATE bots SET name = 'Shop 2'")
        mark = await publish(engine, redis)
        assert await config.caught_up(mark, timeout_s=2)
        bot = config.bot("shop")
        assert bot is not None
        assert bot.name == "Shop 2"
        assert config.key(DIGEST) is not None
    fresh = ConfigReplica(redis)
    await fresh.load()
    assert fresh.key(DIGEST) is not None


async def test_a_lost_stream_of_changes_is_noticed(engine: AsyncEngine, redis: Redis) -> None:
    """Changes that are missing from the stream (trimmed, deleted) reach a follower all the same."""
    await run(engine, ADD_BOT, ADD_POLICY)
    async with following(redis) as config:
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)

        await run(engine, ADD_KEY)
        mark = await publish(engine, redis)
        await redis.delete(keys.CONFIG_CHANGES)

        assert await config.caught_up(mark, timeout_s=2)
        assert config.key(DIGEST) is not None


async def test_another_database_replaces_the_whole_copy(engine: AsyncEngine, redis: Redis) -> None:
    """A Redis that holds another database's configuration, or a later state of a restored one, keeps nothing of it."""
    await run(engine, ADD_BOT, ADD_POLICY, ADD_KEY)
    await publish(engine, redis)

    await run(engine, "UPDATE instance SET id = gen_random_uuid()", "DELETE FROM api_keys")
    async with following(redis) as config:
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)
        assert config.key(DIGEST) is None
        assert config.bot("shop") is not None


async def test_publishers_that_race_lose_no_change(engine: AsyncEngine, redis: Redis) -> None:
    """Ten bots saved and published at once: all of them are known at the end."""

    async def add(number: int) -> None:
        await run(engine, "INSERT INTO bots (id, name) VALUES (:bot, 'x')", bot=f"bot-{number}")
        await publish(engine, redis)

    await asyncio.gather(*(add(number) for number in range(10)))
    config = ConfigReplica(redis)
    await config.load()

    assert sorted(bot.id for bot in config.bots()) == [f"bot-{number}" for number in range(10)]


async def test_publishing_nothing_new_writes_nothing(engine: AsyncEngine, redis: Redis) -> None:
    """The worker's publication every second leaves no trace where nothing changed."""
    await run(engine, ADD_BOT)
    first = await publish(engine, redis)
    length = await redis.xlen(keys.CONFIG_CHANGES)
    second = await publish(engine, redis)

    assert second == first
    assert await redis.xlen(keys.CONFIG_CHANGES) == length


async def test_a_policy_that_is_no_longer_accepted_leaves_the_bot_with_the_default(engine: AsyncEngine, redis: Redis) -> None:
    """A policy that an older version saved and this one refuses takes no bot out of service."""
    await run(engine, ADD_BOT, "INSERT INTO policies VALUES ('shop', 1, '{\"inactivity_minutes\"\\: 4}', now())")
    await publish(engine, redis)
    config = ConfigReplica(redis)
    await config.load()
    bot = config.bot("shop")

    assert bot is not None
    assert bot.rules.policy.policy.inactivity_minutes == 15


async def test_a_failing_redis_ends_no_follower(redis: Redis, engine: AsyncEngine) -> None:
    """A copy that cannot be read, then one that can: the follower keeps trying."""
    async with following(redis) as config:
        with capture_logs() as logs:
            await redis.set(keys.CONFIG, "no hash")
            async with asyncio.timeout(5):
                while not logs:
                    await asyncio.sleep(0.01)
        assert logs[0]["event"] == "configuration not followed"
        assert not config.loaded

        await redis.delete(keys.CONFIG)
        await run(engine, ADD_BOT)
        assert await config.caught_up(await publish(engine, redis), timeout_s=2)
        assert config.bot("shop") is not None


async def _overwrite(redis: Redis, name: str, engine: AsyncEngine) -> None:
    """A newer version writes a value that this one does not know, and publishes another change."""
    stored: Any = await redis.hget(keys.CONFIG, name)
    await redis.hset(keys.CONFIG, name, stored.replace(b'"clock_mode":null', b'"clock_mode":"newer"'))
    await run(engine, "UPDATE bots SET name = 'Other 2' WHERE id = 'other'")


ADD_OTHER = "INSERT INTO bots (id, name) VALUES ('other', 'Other')"
ADD_OTHERS_POLICY = """INSERT INTO policies (bot_id, version, policy, effective_at) VALUES ('other', 1, '{}', '2026-11-21')"""


async def test_a_record_that_cannot_be_read_affects_no_other(engine: AsyncEngine, redis: Redis) -> None:
    """It stays as it was; all others are followed; a process that never read it says so, and does not say that there is none."""
    await run(engine, ADD_BOT, ADD_POLICY, ADD_KEY, ADD_OTHER, ADD_OTHERS_POLICY)
    mark = await publish(engine, redis)
    async with following(redis) as config:
        assert await config.caught_up(mark, timeout_s=5)
        await _overwrite(redis, "bot:shop", engine)
        assert await config.caught_up(await publish(engine, redis), timeout_s=5)
        await config.load()
        async with following(redis) as newcomer:
            assert await newcomer.caught_up(mark, timeout_s=5)

            old, other = config.bot("shop"), config.bot("other")
            assert old is not None
            assert other is not None
            assert (old.name, other.name) == ("Shop", "Other 2")
            assert config.key(DIGEST) is not None
            assert (newcomer.bot("shop"), newcomer.is_unreadable("shop"), config.is_unreadable("shop")) == (None, True, False)
            assert newcomer.bot("other") is not None
            assert newcomer.key(DIGEST) is not None
            assert "1 of the bots and keys" in config.warning
            assert "1 of the bots and keys" in newcomer.warning


async def test_a_key_that_cannot_be_read_is_not_refused_as_unknown(engine: AsyncEngine, redis: Redis) -> None:
    """401 would make a bot give up; with 503 it retries, and reaches a process that can read its key."""
    await run(engine, ADD_BOT, ADD_POLICY, ADD_KEY)
    await publish(engine, redis)
    await redis.hset(keys.CONFIG, f"key:{DIGEST.hex()}", b'{"scopes":7}')
    config = ConfigReplica(redis)
    await config.load()

    with pytest.raises(Unavailable, match="older version"):
        principal_of(config, "Bearer adj_one", now_ms=0, max_age_ms=60_000)
    with pytest.raises(Unauthenticated):
        principal_of(config, "Bearer adj_two", now_ms=0, max_age_ms=60_000)
