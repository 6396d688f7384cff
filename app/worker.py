"""The ticker: every job is one line. Several workers may run at once, on one machine or on many."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from app.closing.archivist import Archivist
from app.closing.consistency import ConsistencyCheck
from app.closing.failures import raise_first
from app.closing.policy_change import PolicyChange
from app.closing.rejects import RejectLimit
from app.closing.sweep import close_deleted_sandboxes
from app.config.publish import publish
from app.config.records import BotConfig
from app.delivery.dispatcher import Dispatcher
from app.errors import Unavailable
from app.failures import failure_of
from app.live.event_stream import EventStream
from app.live.pipe import Pipe, RedisUnreachable
from app.live.server import synchronize
from app.live.shard_lease import ShardLease
from app.metrics import BACKLOG, FAILURES, OPEN, UNACCOUNTED
from app.resources import Resources, open_resources
from app.settings import Settings

log = structlog.get_logger(__name__)

Job = Callable[[], Awaitable[object]]


async def run(settings: Settings) -> None:
    """Work until cancelled; then finish what is under way and go."""
    async with open_resources(settings) as resources:
        worker = Worker(resources)
        worker.start()
        try:
            await asyncio.Event().wait()
        finally:
            await worker.stop()


class Worker:
    """One worker's jobs; tests run them one by one."""

    def __init__(self, resources: Resources) -> None:
        settings = resources.settings
        self._resources = resources
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._archive_pipe = Pipe(resources.redis, timeout_s=max(settings.redis_timeout_s, 5.0))
        self.archivist = Archivist(
            pipe=self._archive_pipe,
            streams=EventStream(
                pipe=self._archive_pipe,
                shards=settings.shards,
                consumer=self.name,
                batch=settings.archive_batch,
                claim_idle_ms=settings.archive_claim_idle_ms,
            ),
            engine=resources.engine,
            shards=settings.shards,
            rules_of=resources.config.rules_of,
            reject_limit=RejectLimit(percent=settings.reject_limit_percent),
        )
        self.dispatcher = Dispatcher(resources.engine, settings)
        self.policy_change = PolicyChange(
            pipe=resources.pipe,
            ledger=resources.ledger,
            config=resources.config,
            sandboxes=resources.sandboxes,
            shards=settings.shards,
            worker=self.name,
        )
        self.consistency = ConsistencyCheck(pipe=resources.pipe, ledger=resources.ledger, shards=settings.shards)
        self.shard_lease = ShardLease(
            pipe=resources.pipe, shards=settings.shards, worker=self.name, lease_ms=settings.shard_lease_ms
        )
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._running: set[asyncio.Task[object]] = set()

    def jobs(self) -> dict[str, tuple[Job, int]]:
        """Each job, and how often it runs, in ms."""
        tick_ms = self._resources.settings.tick_ms
        return {
            "sweep": (self.sweep, tick_ms),
            "sweep sandboxes": (self.sweep_sandboxes, tick_ms),
            "sweep for others": (self.sweep_for_others, self._resources.settings.shard_lease_ms),
            "archive": (self.archivist.run_once, tick_ms),
            "deliver": (self.deliver, tick_ms),
            "publish": (self.publish, 1_000),
            "change policies": (self.change_policies, 500),
            "measure": (self.measure, 5_000),
            "repair": (self.repair, 60_000),
            "heartbeat": (self.heartbeat, 1_000),
        }

    def start(self) -> None:
        for name, (job, every_ms) in self.jobs().items():
            self._scheduler.add_job(
                self._guarded,
                IntervalTrigger(seconds=every_ms / 1000),
                args=(name, job),
                name=name,
                # Late is better than never, once is enough, and one at a time.
                misfire_grace_time=None,
                coalesce=True,
                max_instances=1,
            )
        self.dispatcher.start()
        self._scheduler.start()

    async def stop(self) -> None:
        """Start nothing more, and wait for what is under way as long as the settings allow."""
        grace_s = self._resources.settings.shutdown_grace_s
        if self._scheduler.running:
            self._scheduler.pause()
        self.archivist.stop()
        await self.dispatcher.stop(grace_s)
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        with suppress(Unavailable):  # then the others wait for the lease to end
            await self.shard_lease.release()
        await self._archive_pipe.stop()

    async def sweep(self) -> None:
        """With the time as it is: a worker that ran late would find nothing due, and never know."""
        await synchronize(self._resources.clock, self._resources.pipe)
        now_ms = self._resources.clock.now_ms()
        await self._resources.sweep.run_once(now_ms, shards=await self.shard_lease.shards(now_ms))

    async def sweep_sandboxes(self) -> None:
        shards = await self.shard_lease.shards(self._resources.clock.now_ms())
        await _each(self._sandboxes(partial(self._resources.sweep.run_bot, shards=shards)))

    async def sweep_for_others(self) -> None:
        """A round of all shards, once a lease.

        A crash-looping worker leaves live heartbeats under new names, and no worker sweeps their shards.
        """
        sweep = self._resources.sweep

        async def sweep_round(bot: str, now_ms: int) -> None:
            await sweep.run_round(now_ms, bot=bot)

        await _each([partial(sweep.run_round, self._resources.clock.now_ms()), *self._sandboxes(sweep_round)])

    def _sandboxes(self, sweep: Callable[[str, int], Awaitable[object]]) -> list[Job]:
        """A job for each sandbox bot: `sweep` it, at the instant at which its clock stands, if it does.

        The deleted ones' clocks are run out instead, see `repair`.
        """
        return [partial(self._sweep_sandbox, bot, sweep) for bot in self._resources.config.sandbox_bots()]

    async def _sweep_sandbox(self, bot: BotConfig, sweep: Callable[[str, int], Awaitable[object]]) -> None:
        now_ms = await self._resources.sandboxes.stored_ms(bot.id)
        if now_ms is not None:
            await sweep(bot.id, now_ms)

    async def deliver(self) -> None:
        await self.dispatcher.run_once(self._resources.clock.now_ms())

    async def publish(self) -> None:
        await publish(self._resources.engine, self._resources.redis)

    async def change_policies(self) -> None:
        await self.policy_change.run_once(self._resources.clock.now_ms())

    async def measure(self) -> None:
        account = await self.consistency.totals(self._resources.config.bots_and_deleted())
        OPEN.set(account.open)
        BACKLOG.set(account.pending)
        UNACCOUNTED.set(account.unaccounted)

    async def repair(self) -> None:
        resources = self._resources
        bots = resources.config.bots_and_deleted()
        close = partial(close_deleted_sandboxes, live=resources.live, clocks=resources.sandboxes, sweep=resources.sweep)
        deleted = [bot for bot in bots if bot.deleted and bot.sandbox]
        await _each([*(partial(close, [bot]) for bot in deleted), partial(self.consistency.run_once, bots)])

    async def heartbeat(self) -> None:
        """A sign of life: for `/readyz`, and for the workers who share the shards."""
        await self.shard_lease.heartbeat(self._resources.clock.now_ms())

    async def _guarded(self, name: str, job: Job) -> None:
        """Count and log a failure; the job runs again at its next tick, so nothing is lost."""
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            await job()
        except Exception as error:
            FAILURES.labels(name).inc()
            if failure_of(error) == "unreachable":  # expected: one warning per run, no traceback
                log.warning("job failed", job=name, error=" ".join(str(error).split())[:300])
            else:
                log.exception("job failed", job=name)


async def _each(jobs: Iterable[Job]) -> None:
    """Do them all, one after the other, then raise what the first of those that failed raised; at once if Redis is away."""
    failures: list[Exception] = []
    for job in jobs:
        try:
            await job()
        except RedisUnreachable:
            raise
        except Exception as error:  # noqa: BLE001 - raised when the others are done
            failures.append(error)
    raise_first(failures)
