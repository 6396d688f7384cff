"""Opens the connections of a process and the parts that work on them, in order, and closes them in reverse.

Every entry point uses it. Redis must answer when a process starts; Postgres need not: ingest and closing work without it. It
refuses to start on a Redis with another number of shards.
"""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.engine import SharedEngine, make_engine
from app.clock import Clock
from app.closing.sweep import Sweep
from app.config.change import ConfigWriter
from app.config.follower import ConfigReplica
from app.config.key_usage import KeyUsage
from app.config.records import BotConfig, BotLimits
from app.delivery.secret_box import SecretBox
from app.ingest.intake import Intake
from app.ingest.limits import Admissions, RateLimits
from app.live.commit import CommitScript
from app.live.ledger import Ledger
from app.live.pipe import Pipe
from app.live.rates import OpenQuota, Rates
from app.live.sandbox import SandboxClocks
from app.live.server import ConfigurationError, check_shards, durability_warnings, open_redis, synchronize
from app.live.users import UserVariables
from app.live.view import LiveView
from app.queries.live_events import LiveEvents
from app.settings import Settings
from app.shares import LoopShares, Shares

_ADMIN_POOL_SIZE = 2
_TESTS_AT_ONCE = 8
_TESTS_OF_ONE_BOT = 2
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Resources:
    """One process's connections and the parts that work on them. A part gets the few of these that it uses, never the whole."""

    settings: Settings
    clock: Clock
    redis: Redis
    pipe: Pipe
    engine: AsyncEngine
    read_engine: AsyncEngine  # of the replica, where there is one; else `engine`
    admin_engine: AsyncEngine
    config: ConfigReplica
    key_usage: KeyUsage
    writer: ConfigWriter
    ledger: Ledger
    live: LiveView
    live_events: LiveEvents
    sandboxes: SandboxClocks
    user_variables: UserVariables
    limits: RateLimits
    admissions: Admissions
    bodies: Shares  # bytes of bodies of entries that are read or worked on, by key
    decoding: LoopShares  # of large bodies, by key
    tests: Shares  # tests of endpoints that are sent, by bot
    intake: Intake
    sweep: Sweep

    async def sandbox_ms(self, bot: BotConfig) -> int | None:
        """The instant of a command to this bot in its own time; None for a bot that goes by Redis's."""
        return await self.sandboxes.command_ms(bot.id, bot.clock_mode)


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open everything. Raises `ConfigurationError` for settings that cannot work, `Unavailable` if Redis is unreachable."""
    if settings.redis_url is None or settings.database_url is None:
        raise ConfigurationError("REDIS_URL and DATABASE_URL are not set; `adjourn serve` starts its own servers")
    SecretBox.of(settings)  # a deployment that has no key is refused at its start and not at its first webhook
    _collect_garbage_less_often()
    async with AsyncExitStack() as stack:
        redis = open_redis(settings.redis_url, timeout_s=settings.redis_timeout_s)
        stack.push_async_callback(redis.aclose)
        pipe = Pipe(redis, timeout_s=settings.redis_timeout_s)
        stack.push_async_callback(pipe.stop)
        clock = Clock()
        await check_shards(pipe, settings.shards)
        await synchronize(clock, pipe)
        for warning in await durability_warnings(pipe, appendfsync=settings.appendfsync):
            log.warning("Redis is less durable than expected", setting=warning)
        pool_size, timeout_s = settings.database_pool_size, settings.database_timeout_s
        made = make_engine(settings.database_url, pool_size=pool_size, statement_timeout_s=timeout_s)
        engine = SharedEngine(made, pool_size=pool_size)
        stack.push_async_callback(engine.dispose)
        read_engine = engine
        if settings.database_read_url is not None:
            made = make_engine(settings.database_read_url, pool_size=pool_size, statement_timeout_s=timeout_s, read_only=True)
            read_engine = SharedEngine(made, pool_size=pool_size)
            stack.push_async_callback(read_engine.dispose)
        # No query of a reader can keep an admin, or a probe, from Postgres.
        admin_engine = make_engine(
            settings.database_url, pool_size=_ADMIN_POOL_SIZE, statement_timeout_s=timeout_s, name="adjourn-admin"
        )
        stack.push_async_callback(admin_engine.dispose)
        config = ConfigReplica(redis, BotLimits.of(settings))
        stack.push_async_callback(config.stop)
        await config.start()
        resources = _assemble(
            settings,
            clock=clock,
            redis=redis,
            pipe=pipe,
            engine=engine,
            admin_engine=admin_engine,
            config=config,
            read_engine=read_engine,
        )
        resources.key_usage.start()
        stack.push_async_callback(resources.key_usage.stop)
        yield resources


def _collect_garbage_less_often() -> None:
    """Modules that are loaded stay, and reference counting frees what a request makes, so looking for cycles finds little.

    With the standard thresholds it took two fifths of the time in which 100,000 deadlines are moved.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _assemble(
    settings: Settings,
    *,
    clock: Clock,
    redis: Redis,
    pipe: Pipe,
    engine: AsyncEngine,
    read_engine: AsyncEngine,
    admin_engine: AsyncEngine,
    config: ConfigReplica,
) -> Resources:
    shards = settings.shards
    live = LiveView(pipe, shards=shards)
    ledger = Ledger(
        pipe=pipe,
        script=CommitScript(pipe, clock, max_skew_ms=settings.max_skew_ms),
        clock=clock,
        shards=shards,
        context_of=config.context_of,
        cache_bytes=settings.state_cache_bytes,
        quota=OpenQuota(live.count, limit_of=lambda bot: config.limits_of(bot).max_open_sessions),
    )
    sandboxes = SandboxClocks(pipe, clock)
    return Resources(
        settings=settings,
        clock=clock,
        redis=redis,
        pipe=pipe,
        engine=engine,
        read_engine=read_engine,
        admin_engine=admin_engine,
        config=config,
        key_usage=KeyUsage(config, redis, clock),
        writer=ConfigWriter(admin_engine, redis=redis, replica=config),
        ledger=ledger,
        live=live,
        live_events=LiveEvents(pipe, shards=shards, most=settings.max_connections * 3 // 4),
        sandboxes=sandboxes,
        user_variables=UserVariables(pipe),
        admissions=Admissions(config),
        limits=RateLimits(Rates(pipe), settings),
        bodies=Shares(settings.bodies_max_bytes, most_of_one=settings.bodies_max_bytes * 3 // 4),
        decoding=LoopShares(1, every=3),
        tests=Shares(_TESTS_AT_ONCE, most_of_one=_TESTS_OF_ONE_BOT),
        intake=Intake(ledger=ledger, sandboxes=sandboxes, clock=clock, deadline_s=settings.ingest_deadline_s),
        sweep=Sweep(pipe=pipe, ledger=ledger, shards=shards, batch=settings.sweep_batch),
    )
