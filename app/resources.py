"""Opens what a process works with, in order, and closes it in reverse; every entry point uses it.

Redis must answer when a process starts; Postgres need not: ingest and closing go on without it.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.engine import make_engine
from app.clock import Clock
from app.closing.sweep import Sweep
from app.config.follower import BotConfig, ConfigReplica
from app.domain.policy.parse import Policy, PolicyVersion
from app.domain.records import BotRules
from app.ingest.intake import Intake
from app.live.commit import CommitScript
from app.live.ledger import BotContext, Ledger
from app.live.pipe import Pipe
from app.live.sandbox import SandboxClocks
from app.live.server import ConfigurationError, check_shards, durability_warnings, open_redis, synchronize
from app.live.view import View
from app.settings import Settings

log = structlog.get_logger(__name__)

# What happens to nobody's knowledge where nobody subscribes to it; `session.closed` is what the archive is made of.
OPTIONAL_EVENTS = frozenset({"session.opened", "session.reminder", "session.closure_message"})


@dataclass(frozen=True, slots=True)
class Resources:
    """One process's connections and what works on them."""

    settings: Settings
    clock: Clock
    redis: Redis
    pipe: Pipe
    engine: AsyncEngine
    config: ConfigReplica
    ledger: Ledger
    live: View
    sandboxes: SandboxClocks
    intake: Intake
    sweep: Sweep
    rules_of: Callable[[str], BotRules]

    async def sandbox_ms(self, bot: BotConfig) -> int | None:
        """The instant of a command to this bot in its own time; None for a bot that goes by Redis's."""
        if not bot.sandbox:
            return None
        follows = bot.clock_mode == "sent_at"
        return await self.sandboxes.now_ms(bot.id, real_ms=self.clock.now_ms(), follows=follows)

    async def synced_ms(self) -> int:
        """The time, asked of Redis: a process that commits nothing for long learns of it by this alone."""
        await synchronize(self.clock, self.pipe)
        return self.clock.now_ms()


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open everything. Raises `ConfigurationError` for settings that cannot work, `Unavailable` if Redis is not there."""
    if settings.redis_url is None or settings.database_url is None:
        raise ConfigurationError("REDIS_URL and DATABASE_URL are not set; `adjourn serve` starts its own servers")
    _collect_garbage_less_often()
    async with AsyncExitStack() as stack:
        redis = open_redis(settings.redis_url, timeout_s=settings.redis_timeout_s)
        stack.push_async_callback(redis.aclose)
        pipe = Pipe(redis, timeout_s=settings.redis_timeout_s)
        stack.push_async_callback(pipe.close)
        clock = Clock()
        await check_shards(pipe, settings.shards)
        await synchronize(clock, pipe)
        for warning in await durability_warnings(pipe, appendfsync=settings.appendfsync):
            log.warning("Redis is less durable than expected", setting=warning)
        engine = make_engine(
            settings.database_url,
            pool_size=settings.database_pool_size,
            statement_timeout_s=settings.database_timeout_s,
        )
        stack.push_async_callback(engine.dispose)
        config = await stack.enter_async_context(_following(ConfigReplica(redis)))
        yield _assemble(settings, clock=clock, redis=redis, pipe=pipe, engine=engine, config=config)


def _collect_garbage_less_often() -> None:
    """What is loaded by now stays, and what a request makes is gone by counting references: looking for cycles finds little.

    With the standard thresholds it took two fifths of the time in which 100,000 deadlines are moved.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _assemble(
    settings: Settings, *, clock: Clock, redis: Redis, pipe: Pipe, engine: AsyncEngine, config: ConfigReplica
) -> Resources:
    shards = settings.shards
    grounds = _Grounds(config)
    ledger = Ledger(
        pipe=pipe,
        script=CommitScript(pipe, clock, max_skew_ms=settings.max_skew_ms),
        clock=clock,
        shards=shards,
        ground=grounds.of,
        cache_size=settings.state_cache_size,
    )
    sandboxes = SandboxClocks(pipe)
    return Resources(
        settings=settings,
        clock=clock,
        redis=redis,
        pipe=pipe,
        engine=engine,
        config=config,
        ledger=ledger,
        live=View(pipe, shards=shards),
        sandboxes=sandboxes,
        intake=Intake(ledger=ledger, sandboxes=sandboxes, clock=clock, deadline_s=settings.ingest_deadline_s),
        sweep=Sweep(pipe=pipe, ledger=ledger, shards=shards, batch=settings.sweep_batch),
        rules_of=lambda bot: grounds.of(bot).rules,
    )


class _Grounds:
    """What the ledger must know of each bot, made anew only where the directory has news."""

    def __init__(self, config: ConfigReplica) -> None:
        self._config = config
        self._made: dict[str, tuple[BotConfig, BotContext]] = {}

    def of(self, bot: str) -> BotContext:
        known = self._config.known(bot)
        if known is None:  # not heard of yet, or from before this Redis: its sessions close by the defaults
            return BotContext(BotRules(bot, PolicyVersion(0, 0, Policy())))
        made = self._made.get(bot)
        if made is None or made[0] is not known:
            unwanted = OPTIONAL_EVENTS - known.subscribed
            made = self._made[bot] = known, BotContext(known.rules, known.sandbox, unwanted)
        return made[1]


@asynccontextmanager
async def _following(config: ConfigReplica) -> AsyncIterator[ConfigReplica]:
    await config.load()
    task = asyncio.create_task(config.follow(), name="directory")
    try:
        yield config
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
