"""The cost of a decision, and of a commit by the size of its group."""

import asyncio
from collections.abc import Sequence
from itertools import count
from time import perf_counter, process_time

import psutil
from msgspec import Struct

from app.domain.entry import Entry
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Receive, State
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.live import keys
from app.resources import Resources
from bench.installation import BOT

RULES = BotRules(BOT, PolicyVersion(1, 0, Policy()))
DECISIONS = 100_000
_numbers = count()  # no message id comes twice, or the ledger would answer it from what it knows
SECONDS = 2.0


class TakenRecord(Struct, frozen=True):
    """Messages a second, and what each cost this process and Redis in µs of CPU."""

    rate: float
    cpu_us: float
    redis_us: float = 0.0


async def measure(resources: Resources, redis: psutil.Process) -> dict[str, TakenRecord]:
    """Each way for two seconds."""
    shards = resources.settings.shards
    one_a_shard = strands_on_shards(1, shards)
    many = strands_on_shards(100, shards)
    return {
        "decide, nothing else": _decisions(),
        "one message per commit": await _waves(resources, redis, one_a_shard),
        "100 conversations per commit": await _waves(resources, redis, many),
        "500 messages, 1 conversation": await _waves(resources, redis, [strand for strand in one_a_shard for _ in range(500)]),
    }


def show(taken: dict[str, TakenRecord]) -> None:
    """Ratios to one message a commit."""
    one = taken["one message per commit"].rate
    print("\nLedger: one process, messages of two parties, appendfsync always, 16 shards under way at once")
    print(f"  {'':<32}{'of one':>8}{'messages/s':>12}{'CPU µs each':>13}{'of Redis':>10}")
    for name, item in taken.items():
        print(f"  {name:<32}{item.rate / one:>8.1f}{item.rate:>12,.0f}{item.cpu_us:>13.1f}{item.redis_us:>10.1f}")


def _decisions() -> TakenRecord:
    strand = Strand(BOT, "web:decide")
    commands = [message("decide", index) for index in range(1_000)]
    state, now_ms = State(), 1_790_000_000_000
    began, cpu = perf_counter(), process_time()
    for index in range(DECISIONS):
        state = decide(strand, state, commands[index % 1_000], RULES, now_ms + index).state
    return TakenRecord(DECISIONS / (perf_counter() - began), (process_time() - cpu) / DECISIONS * 1e6)


async def _waves(resources: Resources, redis: psutil.Process, strands: Sequence[Strand]) -> TakenRecord:
    """All strands at once, again and again: each shard commits its part as one."""
    done = 0
    began, cpu, redis_cpu = perf_counter(), process_time(), _cpu_s(redis)
    while perf_counter() - began < SECONDS:
        submit = resources.ledger.submit
        await asyncio.gather(
            *[submit(strand, message(strand.conversation, done + index)) for index, strand in enumerate(strands)]
        )
        done += len(strands)
    each_us = (process_time() - cpu) / done * 1e6, (_cpu_s(redis) - redis_cpu) / done * 1e6
    return TakenRecord(done / (perf_counter() - began), *each_us)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def message(user: str, index: int) -> Receive:
    message_id = f"{user}-{index}"
    return Receive(Entry(user_id=user, role="bot" if index % 2 else "user", message_id=message_id, text="hello"), message_id)


def strands_on_shards(per_shard: int, shards: int) -> list[Strand]:
    """That many conversations on each shard."""
    found: dict[int, list[Strand]] = {shard: [] for shard in range(shards)}
    index = 0
    while any(len(strands) < per_shard for strands in found.values()):
        strand = Strand(BOT, f"web:ledger-{per_shard}-{index}")
        place = found[keys.shard_of(strand, shards)]
        if len(place) < per_shard:
            place.append(strand)
        index += 1
    return [strand for strands in found.values() for strand in strands]
