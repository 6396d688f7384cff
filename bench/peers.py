"""Schedulers that people would use instead, as contestants: deadlines moved in a second, and the lag from deadline to callback.

Each has the same servers, durability and number of deadlines, and is driven as its documentation says for throughput. A peer
only moves a deadline and calls a function; Adjourn's figures are whole entries (decided, deduplicated, stored with their
transcript) and whole closes (archived, signed, received).
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter, sleep, time
from urllib.parse import urlsplit

import asyncpg
import redis
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from celery import Celery
from msgspec import Struct
from redis.asyncio import Redis

from app.resources import Resources
from app.settings import Settings
from bench import FAST, lag
from bench.ledger import message, strands_on_shards

OPEN = 5_000 if FAST else 20_000
"""Deadlines that stay while some are moved and others pass."""
DUE, LEAD_MS, SPREAD_MS = lag.DUE, lag.LEAD_MS, lag.SPREAD_MS
SECONDS = 2.0 if FAST else 5.0
AT_ONCE = 64
_THREADS = 16
_BATCH = 500
_POLL_S = 0.05
_HOUR_S = 3_600
_DONE = "peers:lags"
_PATIENCE_S = 120.0


class Contest(Struct, frozen=True):
    """Deadlines moved a second, and ms from deadlines to callbacks, in order. `survives`: a deadline outlives a restart."""

    moves: float
    lags: list[float]
    survives: bool = True


class Peer(ABC):
    """One scheduler: `fill`, then `move`, then `fire`."""

    survives = True

    @abstractmethod
    async def fill(self, count: int) -> None:
        """Schedule that many sessions to close in an hour."""

    @abstractmethod
    async def move(self) -> float:
        """Move deadlines of random sessions for `SECONDS`; how many a second."""

    @abstractmethod
    async def fire(self, deadlines: list[float]) -> list[float]:
        """Schedule these deadlines (seconds since the epoch), wait for their callbacks; the lags in ms."""


class KeyspaceEvents(Peer):
    """A key that expires, and its event. An event that nobody listens to is lost."""

    survives = False

    def __init__(self, settings: Settings) -> None:
        self._redis: Redis = Redis.from_url(str(settings.redis_url), max_connections=2 * AT_ONCE)

    async def fill(self, count: int) -> None:
        await self._redis.config_set("notify-keyspace-events", "Ex")
        self._count = count
        for first in range(0, count, 1_000):
            async with self._redis.pipeline(transaction=False) as pipe:
                for number in range(first, min(first + 1_000, count)):
                    _ = pipe.set(f"open:{number}", "", ex=_HOUR_S)
                await pipe.execute()

    async def move(self) -> float:
        async def one() -> None:
            await self._redis.expire(f"open:{random.randrange(self._count)}", _HOUR_S)

        return await _at_once(one)

    async def fire(self, deadlines: list[float]) -> list[float]:
        lags: list[float] = []
        async with self._redis.pubsub() as events:
            await events.psubscribe("__keyevent@*__:expired")
            async with self._redis.pipeline(transaction=False) as pipe:
                for number, at_s in enumerate(deadlines):
                    _ = pipe.set(f"due:{number}", "", pxat=int(at_s * 1_000))
                await pipe.execute()
            async with asyncio.timeout(_PATIENCE_S):
                async for event in events.listen():
                    if event["type"] == "pmessage":
                        number = int(event["data"].split(b":")[1])
                        lags.append((time() - deadlines[number]) * 1_000)
                        if len(lags) == len(deadlines):
                            break
        await self._redis.config_set("notify-keyspace-events", "")
        return lags


_fired: asyncio.Queue[float] = asyncio.Queue()


async def _note(at_s: float) -> None:
    _fired.put_nowait((time() - at_s) * 1_000)


class ApScheduler(Peer):
    """A job for each session, in its job store on Redis."""

    def __init__(self, settings: Settings) -> None:
        store = RedisJobStore(unix_socket_path=_path(settings))
        self._scheduler = AsyncIOScheduler(jobstores={"default": store}, timezone=UTC)

    async def fill(self, count: int) -> None:
        self._count = count
        self._scheduler.start(paused=True)
        later = datetime.now(UTC) + timedelta(seconds=_HOUR_S)
        for number in range(count):
            self._scheduler.add_job(_note, "date", run_date=later, args=(0.0,), id=f"open-{number}")
        self._scheduler.resume()

    async def move(self) -> float:
        moved, began = 0, perf_counter()
        while perf_counter() - began < SECONDS:
            later = datetime.now(UTC) + timedelta(seconds=_HOUR_S)
            self._scheduler.reschedule_job(f"open-{random.randrange(self._count)}", trigger="date", run_date=later)
            moved += 1
            if moved % AT_ONCE == 0:
                await asyncio.sleep(0)  # its own loop has to wake up, too
        return moved / (perf_counter() - began)

    async def fire(self, deadlines: list[float]) -> list[float]:
        for at_s in deadlines:
            run_date = datetime.fromtimestamp(at_s, UTC)
            self._scheduler.add_job(_note, "date", run_date=run_date, args=(at_s,), misfire_grace_time=None)
        async with asyncio.timeout(_PATIENCE_S):
            lags = [await _fired.get() for _ in deadlines]
        self._scheduler.shutdown(wait=False)
        return lags


celery_app = Celery("bench", broker=os.environ.get("BENCH_BROKER"))
celery_app.conf.update(
    task_ignore_result=True,
    broker_pool_limit=4 * _THREADS,
    worker_prefetch_multiplier=0,
    broker_transport_options={"visibility_timeout": 86_400},
)


@celery_app.task  # type: ignore[untyped-decorator]
def close_session(at_s: float) -> None:
    """The callback: it notes its lag in Redis, as the worker is another process."""
    with redis.Redis.from_url(os.environ["BENCH_REDIS"]) as client:
        client.rpush(_DONE, (time() - at_s) * 1_000)


class CeleryCountdown(Peer):
    """A task with an ETA for each session; moving one revokes it and sends another."""

    def __init__(self, settings: Settings) -> None:
        self._url = str(settings.redis_url)
        self._broker = "redis+socket://" + _path(settings)
        celery_app.conf.broker_url = self._broker

    async def fill(self, count: int) -> None:
        with ThreadPoolExecutor(_THREADS) as threads:
            self._ids = list(threads.map(lambda _: self._send(), range(count)))

    async def move(self) -> float:
        began = perf_counter()

        def repeat() -> int:
            moved = 0
            while perf_counter() - began < SECONDS:
                index = random.randrange(len(self._ids))
                celery_app.control.revoke(self._ids[index])
                self._ids[index] = self._send()
                moved += 1
            return moved

        with ThreadPoolExecutor(_THREADS) as threads:
            moved = sum(threads.map(lambda _: repeat(), range(_THREADS)))
        return moved / (perf_counter() - began)

    @staticmethod
    def _send() -> str:
        later = datetime.now(UTC) + timedelta(seconds=_HOUR_S)
        with celery_app.producer_pool.acquire(block=True) as producer:
            return str(close_session.apply_async((0.0,), eta=later, producer=producer).id)

    async def fire(self, deadlines: list[float]) -> list[float]:
        with _celery_worker(self._broker, self._url), redis.Redis.from_url(self._url) as client:
            _wait(lambda: client.llen("celery") == 0)  # the worker has taken the others into its memory
            ahead_s = time() + LEAD_MS / 1_000 - deadlines[0]
            for at_s in deadlines:
                close_session.apply_async((at_s + ahead_s,), eta=datetime.fromtimestamp(at_s + ahead_s, UTC))
            _wait(lambda: client.llen(_DONE) == len(deadlines))
            return [float(each) for each in client.lrange(_DONE, 0, -1)]


class PostgresSkipLocked(Peer):
    """A table of deadlines: moved in batches, taken by `FOR UPDATE SKIP LOCKED` each 50 ms."""

    def __init__(self, settings: Settings) -> None:
        self._url = str(settings.database_url).replace("+asyncpg", "")

    async def fill(self, count: int) -> None:
        self._count = count
        self._conn = await asyncpg.connect(self._url)
        await self._conn.execute("CREATE TABLE deadlines (id text PRIMARY KEY, due timestamptz NOT NULL)")
        await self._conn.execute("CREATE INDEX ON deadlines (due)")
        later = datetime.now(UTC) + timedelta(seconds=_HOUR_S)
        await self._conn.copy_records_to_table("deadlines", records=[(f"open:{number}", later) for number in range(count)])

    async def move(self) -> float:
        moved, began = 0, perf_counter()
        sql = "UPDATE deadlines SET due = $2 FROM unnest($1::text[]) AS moved (id) WHERE deadlines.id = moved.id"
        while perf_counter() - began < SECONDS:
            later = datetime.now(UTC) + timedelta(seconds=_HOUR_S)
            await self._conn.execute(sql, [f"open:{number}" for number in random.sample(range(self._count), _BATCH)], later)
            moved += _BATCH
        return moved / (perf_counter() - began)

    async def fire(self, deadlines: list[float]) -> list[float]:
        rows = [(f"due:{number}", datetime.fromtimestamp(at_s, UTC)) for number, at_s in enumerate(deadlines)]
        await self._conn.copy_records_to_table("deadlines", records=rows)
        sql = (
            "DELETE FROM deadlines WHERE id IN (SELECT id FROM deadlines WHERE due <= clock_timestamp() ORDER BY due LIMIT 500"
            " FOR UPDATE SKIP LOCKED) RETURNING due"
        )
        lags: list[float] = []
        async with asyncio.timeout(_PATIENCE_S):
            while len(lags) < len(deadlines):
                lags += [(time() - row["due"].timestamp()) * 1_000 for row in await self._conn.fetch(sql)]
                await asyncio.sleep(_POLL_S)
        await self._conn.execute("DROP TABLE deadlines")
        await self._conn.close()
        return lags


PEERS: dict[str, Callable[[Settings], Peer]] = {
    "Redis keyspace events": KeyspaceEvents,
    "APScheduler, Redis": ApScheduler,
    "Celery countdown, Redis": CeleryCountdown,
    "Postgres, SKIP LOCKED": PostgresSkipLocked,
}


async def measure(resources: Resources) -> Contest:
    """Adjourn's own figures."""
    (lags,) = await lag.measure(resources, beside=(OPEN,))
    return Contest(await _entries(resources), lags.to_receiver)


async def measure_peers(settings: Settings) -> dict[str, Contest]:
    """Each peer, on servers that hold nothing else."""
    found = {}
    async with Redis.from_url(str(settings.redis_url)) as client:
        for name, make in PEERS.items():
            await client.flushall()
            found[name] = await _contest(make(settings), client)
        await client.flushall()
    if shutil.which("npm") and shutil.which("node"):
        found["BullMQ"] = _bullmq(_path(settings))
    else:
        print("BullMQ is left out: npm is not installed")
    return found


def show(ours: Contest, peers: dict[str, Contest]) -> None:
    print(f"\nSchedulers: {OPEN:,} deadlines that stay; {DUE:,} that pass within {SPREAD_MS / 1_000:.0f} s; appendfsync always")
    print(f"  {'':<26}{'moved a second':>16}{'ours are':>10}{'lag p50, ms':>13}{'p99, ms':>9}  survives a restart")
    for name, item in {"Adjourn": ours, **peers}.items():
        lags = sorted(item.lags)
        p50, p99 = lags[len(lags) // 2], lags[int(len(lags) * 0.99)]
        survives = "yes" if item.survives else "no"
        print(f"  {name:<26}{item.moves:>16,.0f}{ours.moves / item.moves:>9.1f}x{p50:>13,.0f}{p99:>9,.0f}  {survives}")


async def _entries(resources: Resources) -> float:
    """Entries a second for sessions that are open, each of which moves its session's deadline."""
    strands = strands_on_shards(100, resources.settings.shards)
    moved, began = 0, perf_counter()
    while perf_counter() - began < SECONDS:
        submitted = [
            resources.ledger.submit(strand, message(strand.conversation, moved + at)) for at, strand in enumerate(strands)
        ]
        await asyncio.gather(*submitted)
        moved += len(strands)
    return moved / (perf_counter() - began)


async def _contest(peer: Peer, client: Redis) -> Contest:
    await client.config_set("appendfsync", "no")  # only while it is filled, which takes minutes otherwise
    await peer.fill(OPEN)
    await client.config_set("appendfsync", "always")
    moves = await peer.move()
    first_s = time() + LEAD_MS / 1_000
    lags = await peer.fire([first_s + number * SPREAD_MS / DUE / 1_000 for number in range(DUE)])
    return Contest(moves, lags, peer.survives)


async def _at_once(work: Callable[[], Awaitable[None]]) -> float:
    done, began = 0, perf_counter()

    async def repeat() -> None:
        nonlocal done
        while perf_counter() - began < SECONDS:
            await work()
            done += 1

    await asyncio.gather(*[repeat() for _ in range(AT_ONCE)])
    return done / (perf_counter() - began)


@contextmanager
def _celery_worker(broker: str, url: str) -> Iterator[None]:
    words = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "bench.peers:celery_app",
        "worker",
        "--pool=solo",
        "--loglevel=ERROR",
    ]
    environment = {**os.environ, "BENCH_BROKER": broker, "BENCH_REDIS": url}
    process = subprocess.Popen(
        [*words, "--without-gossip", "--without-mingle"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # it puts its tasks back first, one by one
            process.kill()
            process.wait()


def _wait(met: Callable[[], bool]) -> None:
    give_up = perf_counter() + _PATIENCE_S
    while not met():
        if perf_counter() > give_up:
            raise TimeoutError
        sleep(_POLL_S)


def _path(settings: Settings) -> str:
    return urlsplit(str(settings.redis_url)).path


def _bullmq(path: str) -> Contest:
    """In Node, from npm, in a folder of its own that is removed."""
    with tempfile.TemporaryDirectory(prefix="adj-bullmq-") as folder:
        subprocess.run(
            (shutil.which("npm") or "npm", *["install", "--silent", "--no-audit", "--no-fund", "bullmq", "ioredis"]),
            cwd=folder,
            check=True,
        )
        script = shutil.copy(Path(__file__).with_suffix(".mjs"), folder)
        words = ["node", script, path, *map(str, (OPEN, DUE, LEAD_MS, SPREAD_MS, SECONDS))]
        answer = json.loads(subprocess.run(words, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return Contest(answer["moves"], answer["lags"])
