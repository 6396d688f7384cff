"""`make soak`: traffic for a long time with a fault a minute, then the same judgement as after each fault, and memory and keys.

    make soak                 30 minutes
    make soak ARGS=5          5 minutes

Each fault kills a part and starts it again: an API process, a worker, Redis, Postgres. An API process and a worker live
through the whole run: their memory must not grow. When all is closed, Redis holds no key without a TTL but the lasting ones.
"""

# ruff: noqa: T201  it prints

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from statistics import linear_regression

from msgspec import Struct

from tests.faults.draining import end_all, unaccounted
from tests.faults.installation import Installation, installation
from tests.faults.oracle import Verdict, judge
from tests.faults.processes import Part, Process
from tests.faults.talk import Log, chatter

MINUTES = 30.0
FAULT_EVERY_S = 60.0
DOWN_S = 3.0
WARM_UP = 0.3  # of the run, in which caches fill
GROWTH = 1.1
_SAMPLE_S = 1.0
_MB = 1 << 20
# The keys of a deployment, of a shard and of a bot's clock, which stay; streams of events stay, too, and must be empty.
_LASTING = re.compile(rb"adj:(?!\{\d+\})|adj:\{\d+\}:(counts|events|feed)$")


class Soaked(Struct, frozen=True):
    """The results of a run."""

    verdict: Verdict
    faults: int
    entries: int
    stuck: int  # unaccounted for, when all is closed
    keys_left: list[str]
    traces: list[str]
    mb: dict[str, tuple[float, float]]  # at the end of the warm-up and at the end, of the line through the samples

    def check(self, *, growth: float = GROWTH) -> None:
        """`growth`: the most that a process may grow by, as a factor."""
        self.verdict.check()
        assert self.stuck == 0
        assert self.keys_left == []
        assert self.traces == []
        assert all(last < first * growth for first, last in self.mb.values()), self.mb

    def lines(self) -> list[str]:
        memory = [f"memory of {part}: {first:.1f} MB, then {last:.1f} MB" for part, (first, last) in self.mb.items()]
        lost, double = len(self.verdict.lost), len(self.verdict.double)
        return [
            f"{self.entries} entries, {self.verdict.sessions} sessions, {self.faults} faults",
            f"lost {lost}, unexpected {len(self.verdict.unexpected)}, double {double}, stuck {self.stuck}",
            f"keys left {len(self.keys_left)}, unexpected exceptions {len(self.traces)}",
            *memory,
        ]


async def soak(stage: Installation, *, minutes: float, fault_every_s: float) -> Soaked:
    """Run it. The results are not checked yet."""
    bot, log = await stage.make_bot("soaking", clock=None), Log()
    steady = {"API": await stage.start("api"), "worker": await stage.start("worker")}
    victims: dict[Part, Process] = {"api": await stage.start("api"), "worker": await stage.start("worker")}
    samples: list[tuple[float, dict[str, float]]] = []
    over_s, faults = time.monotonic() + minutes * 60, 0
    async with chatter(stage.caller, bot, log, talkers=8, ends=0.1, pace_s=0.02):
        watching = asyncio.create_task(_watch(steady, samples))
        for fault in cycle(_faults(stage, victims)):
            await asyncio.sleep(min(fault_every_s, over_s - time.monotonic()))
            if time.monotonic() >= over_s:
                break
            await fault()
            faults += 1
        watching.cancel()
    await end_all(stage, bot, log)
    return Soaked(
        verdict=await judge(stage, log),
        faults=faults,
        entries=len(log.said),
        stuck=await unaccounted(stage),
        keys_left=await _keys_left(stage),
        traces=stage.traces(),
        mb={part: _line(samples, part) for part in steady},
    )


def _faults(stage: Installation, victims: dict[Part, Process]) -> Sequence[Callable[[], Awaitable[None]]]:
    async def kill(part: Part) -> None:
        victims[part].kill()
        await victims[part].over.wait()
        victims[part] = await stage.start(part)

    async def kill_redis() -> None:
        stage.redis.kill()
        await asyncio.sleep(DOWN_S)
        await stage.revive(stage.redis)

    async def kill_postgres() -> None:
        stage.postgres.kill()
        await asyncio.sleep(DOWN_S)
        await stage.revive(stage.postgres)

    return (lambda: kill("worker"), lambda: kill("api"), kill_redis, kill_postgres)


async def _watch(parts: dict[str, Process], samples: list[tuple[float, dict[str, float]]]) -> None:
    while True:
        samples.append((time.monotonic(), {name: process.rss() / _MB for name, process in parts.items()}))
        await asyncio.sleep(_SAMPLE_S)


def _line(samples: Sequence[tuple[float, dict[str, float]]], part: str) -> tuple[float, float]:
    """The ends of the line through the samples after the warm-up."""
    kept = samples[int(len(samples) * WARM_UP) :]
    at_s, mb = [at for at, _ in kept], [of[part] for _, of in kept]
    slope, base = linear_regression(at_s, mb)
    return base + slope * at_s[0], base + slope * at_s[-1]


async def _keys_left(stage: Installation) -> list[str]:
    """The names of keys that no TTL ends and that belong to no deployment."""
    async with stage.live() as client:
        return [
            name.decode(errors="replace")
            async for name in client.scan_iter(count=1_000)
            if not _LASTING.match(name) and await client.ttl(name) == -1
        ]


async def _main(minutes: float) -> None:
    async with installation() as stage:
        done = await soak(stage, minutes=minutes, fault_every_s=FAULT_EVERY_S)
    print("\n".join(done.lines()))
    done.check()


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
