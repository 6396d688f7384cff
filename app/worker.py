"""The worker: a scheduler that runs each job at its interval, one run of a job at a time.

Several workers may run at once, on one machine or on many. A job that fails is counted, logged and run again at its next tick.
A job that has given the next stage something to do starts it at once: what a sweep closes is archived, and what is archived is
delivered, without waiting for two more ticks. A sweep starts the next one at the next deadline, so that its tick, too, is only a
fallback.
"""

import asyncio
import os
import socket
from contextlib import suppress
from datetime import UTC
from functools import partial

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from app.archive.retention import Retention
from app.archive.rollup import RollUp
from app.closing.archivist import Archivist
from app.closing.consistency import ConsistencyCheck
from app.closing.erasure import ErasureJob
from app.closing.policy_change import PolicyChange
from app.closing.rejects import RejectLimit
from app.closing.sweep import Job, SandboxSweep, run_each
from app.config.key_usage import save_key_uses
from app.config.publish import publish
from app.delivery.dispatcher import Dispatcher
from app.errors import Unavailable
from app.failures import failure_of
from app.live.due import ShardLease
from app.live.event_stream import EventStream
from app.live.pipe import Pipe
from app.live.server import synchronize
from app.log import logged_life
from app.metrics import FAILURES
from app.resources import Resources, open_resources
from app.settings import Settings

log = structlog.get_logger(__name__)

ROLL_UP_MS = 30_000
"""Rarely, since each run reads all sessions of an hour in which one has changed; answers are exact meanwhile."""

RETAIN_MS = 600_000

SWEEP_GAP_MS = 50
"""From one sweep to the next at least: deadlines that are closer are swept, archived and delivered together, which costs less."""

NEXT_STAGE = {"sweep": "archive", "archive": "deliver"}
"""The job that a job starts where it has done something."""


async def run(settings: Settings) -> None:
    """Work until cancelled; then finish what is in progress."""
    async with open_resources(settings) as resources:
        with logged_life(settings):
            resources.config.log_loaded()
            worker = Worker(resources)
            worker.start()
            try:
                await asyncio.Event().wait()
            finally:
                await worker.stop()


class Worker:
    """One worker's jobs. Each is safe to run in several workers at once; tests run them one by one."""

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
        self.erasure = ErasureJob(
            engine=resources.engine,
            pipe=resources.pipe,
            ledger=resources.ledger,
            config=resources.config,
            sandboxes=resources.sandboxes,
            shards=settings.shards,
        )
        self.sandbox_sweep = SandboxSweep(
            pipe=resources.pipe, sweep=resources.sweep, config=resources.config, clocks=resources.sandboxes
        )
        self.roll_up = RollUp(resources.engine)
        self.retention = Retention(resources.engine)
        self.consistency = ConsistencyCheck(pipe=resources.pipe, ledger=resources.ledger, shards=settings.shards)
        self.shard_lease = ShardLease(
            pipe=resources.pipe, shards=settings.shards, worker=self.name, lease_ms=settings.shard_lease_ms
        )
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._running: set[asyncio.Task[object]] = set()
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._next_sweep: asyncio.TimerHandle | None = None
        self._repaired = -1
        self._stopping = False

    def jobs(self) -> dict[str, tuple[Job, int]]:
        """Each job, and how often it runs, in ms."""
        resources, settings = self._resources, self._resources.settings
        now_ms = resources.clock.now_ms
        return {
            "sweep": (self.sweep, settings.tick_ms),
            "sweep sandboxes": (self.sweep_sandboxes, settings.tick_ms),
            "sweep for others": (self.sweep_for_others, settings.shard_lease_ms),
            "archive": (self.archivist.run_once, settings.tick_ms),
            "deliver": (lambda: self.dispatcher.run_once(now_ms()), settings.tick_ms),
            "publish": (lambda: publish(resources.engine, resources.redis), 1_000),
            "erase users": (self.erasure.run_once, 1_000),
            "save key uses": (lambda: save_key_uses(resources.engine, resources.redis), 60_000),
            "change policies": (lambda: self.policy_change.run_once(now_ms()), 500),
            "measure": (self.measure, 5_000),
            "roll up": (self.roll_up.run_once, ROLL_UP_MS),
            "retain": (lambda: self.retention.run_once(now_ms()), RETAIN_MS),
            "repair": (self.repair, 60_000),
            "heartbeat": (lambda: self.shard_lease.heartbeat(now_ms()), 1_000),
        }

    def start(self) -> None:
        for name, (_, every_ms) in self.jobs().items():
            self._scheduler.add_job(
                self.run_job,
                IntervalTrigger(seconds=every_ms / 1000),
                args=(name,),
                name=name,
                # A late tick is not dropped, several late ones are one, and a job never runs twice at once.
                misfire_grace_time=None,
                coalesce=True,
                max_instances=1,
            )
        self.dispatcher.start()
        self._scheduler.start()

    async def stop(self) -> None:
        """Start nothing more, and wait for what is in progress as long as the settings allow."""
        self._stopping = True
        self._sweep_at(None)
        grace_s = self._resources.settings.shutdown_grace_s
        if self._scheduler.running:
            self._scheduler.pause()
        self.archivist.stop()
        await self.dispatcher.stop(grace_s)
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        with suppress(Unavailable):  # then the other workers wait until the lease expires
            await self.shard_lease.release()
        await self._archive_pipe.stop()

    async def sweep(self) -> int:
        """Sweep this worker's shards, at the instant of Redis: a worker whose clock is behind would find nothing due."""
        await synchronize(self._resources.clock, self._resources.pipe)
        now_ms, shards = self._resources.clock.now_ms(), await self._held()
        woken = await self._resources.sweep.run_once(now_ms, shards=shards)
        within_ms = self._resources.settings.tick_ms
        self._sweep_at(await self._resources.sweep.next_due_ms(now_ms, within_ms=within_ms, shards=shards))
        return woken

    def _sweep_at(self, due_ms: int | None) -> None:
        """Sweep at the next deadline instead of at the tick after it; None: none comes before the tick."""
        if self._next_sweep is not None:
            self._next_sweep.cancel()
            self._next_sweep = None
        if due_ms is not None and not self._stopping:
            delay_ms = max(due_ms - self._resources.clock.now_ms(), SWEEP_GAP_MS)
            self._next_sweep = asyncio.get_running_loop().call_later(delay_ms / 1000, self._start_now, "sweep")

    async def sweep_sandboxes(self) -> None:
        await self.sandbox_sweep.run_once(shards=await self._held())

    async def sweep_for_others(self) -> None:
        """Sweep a round of all shards: a crash-looping worker leaves live heartbeats under new names, and sweeps nothing."""
        shards = range(self._resources.settings.shards)
        sweep = partial(self._resources.sweep.run_round, self._resources.clock.now_ms())
        await run_each([sweep, partial(self.sandbox_sweep.run_round, shards=shards)])

    async def measure(self) -> None:
        """Measure this worker's shards; what belongs to no shard is measured by the worker that holds the first one."""
        held = await self._held()
        self.dispatcher.measure(here=0 in held)
        await self.consistency.measure(held)

    async def repair(self) -> None:
        """Check this worker's shards, and the next one of all, for the same reason as `sweep_for_others`."""
        self._repaired = (self._repaired + 1) % self._resources.settings.shards
        shards = sorted({*await self._held(), self._repaired})
        check = partial(self.consistency.run_once, self._resources.config.bots_and_deleted(), shards=shards)
        await run_each([partial(self.sandbox_sweep.close_deleted, shards=shards), check])

    async def _held(self) -> list[int]:
        """The shards that this worker holds now."""
        return await self.shard_lease.shards(self._resources.clock.now_ms())

    async def run_job(self, name: str) -> None:
        """Run a job, unless a run of it goes on; then start the next stage if there is something for it to do.

        A failure is counted and logged; the job runs again at its next tick, so nothing is lost.
        """
        if name in self._active:
            return
        task = asyncio.current_task()
        if task is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._active.add(name)
        try:
            done = await self.jobs()[name][0]()
        except Exception as error:
            done = None
            FAILURES.labels(name).inc()
            if failure_of(error) == "unreachable":  # expected: one warning per run, no traceback
                log.warning("job failed", job=name, error=" ".join(str(error).split())[:300])
            else:
                log.exception("job failed", job=name)
        finally:
            self._active.discard(name)
        if done and name in NEXT_STAGE:
            self._start_now(NEXT_STAGE[name])
        if name in self._again:
            self._again.discard(name)
            self._start_now(name)

    def _start_now(self, name: str) -> None:
        """Run a job without waiting for its tick; after the run that goes on, which may have missed what is new."""
        if name in self._active:
            self._again.add(name)
        elif not self._stopping:
            task = asyncio.create_task(self.run_job(name), name=name)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
