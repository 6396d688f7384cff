"""What a decision costs, and what a commit costs by how many go together."""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from app.domain.decide import decide
from app.domain.entry import Entry
from app.domain.policy import Policy, PolicyVersion
from app.domain.records import BotRules, Receive, State
from app.domain.strand import Strand
from app.live import keys
from app.resources import Resources
from bench.ground import BOT

RULES = BotRules(BOT, PolicyVersion(1, 0, Policy()))
DECISIONS = 100_000
SECONDS = 2.0


async def measure(resources: Resources) -> dict[str, float]:
    """Messages a second of each way."""
    shards = resources.settings.shards
    one_a_shard = _strands(1, shards)
    many = _strands(100, shards)
    return {
        "decide, nothing else": _decisions(),
        "one message per commit": await _waves(resources, one_a_shard),
        "100 conversations per commit": await _waves(resources, many),
        "500 messages, 1 conversation": await _waves(resources, [strand for strand in one_a_shard for _ in range(500)]),
    }


def show(rates: dict[str, float]) -> None:
    """Ratios to one message a commit."""
    one = rates["one message per commit"]
    print("\nLedger: one process, messages of two parties, appendfsync always, 16 shards under way at once")
    print(f"  {'':<32}{'of one':>8}{'messages/s':>12}{'µs each':>10}")
    for name, rate in rates.items():
        print(f"  {name:<32}{rate / one:>8.1f}{rate:>12,.0f}{1e6 / rate:>10.1f}")


def _decisions() -> float:
    strand = Strand(BOT, "web:decide")
    commands = [_message("decide", index) for index in range(1_000)]
    state, now_ms = State(), 1_790_000_000_000
    began = perf_counter()
    for index in range(DECISIONS):
        state = decide(strand, state, commands[index % 1_000], RULES, now_ms + index).state
    return DECISIONS / (perf_counter() - began)


async def _waves(resources: Resources, strands: Sequence[Strand]) -> float:
    """All strands at once, again and again: each shard commits its part as one."""
    done = 0
    began = perf_counter()
    while perf_counter() - began < SECONDS:
        submit = resources.ledger.submit
        await asyncio.gather(
            *[submit(strand, _message(strand.conversation, done + index)) for index, strand in enumerate(strands)]
        )
        done += len(strands)
    return done / (perf_counter() - began)


def _message(user: str, index: int) -> Receive:
    message_id = f"{user}-{index}"
    return Receive(Entry(user_id=user, role="bot" if index % 2 else "user", message_id=message_id, text="hello"), message_id)


def _strands(per_shard: int, shards: int) -> list[Strand]:
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
