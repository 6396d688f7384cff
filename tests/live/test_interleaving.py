"""The same entries in any batching, by any interleaving of processes and sweepers, give the same sessions."""

import asyncio
import random
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import msgpack
from redis.asyncio import Redis

from app.clock import Clock
from app.closing.sweep import Sweep
from app.domain.entry import Entry
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Event, Message, Receive, Session, State, Wake
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.live import keys
from app.live.codec import EventRecord
from app.live.commit import CommitScript
from app.live.ledger import BotContext, Ledger
from app.live.pipe import Pipe
from app.live.view import messages_of
from tests.domain.strategies import PAUSES, entries, policies
from tests.domain.talk import NOON_MS

SHARDS = 2
FAR_MS = NOON_MS + 10**12
STRANDS = tuple(Strand("bot", f"c{number}") for number in range(4))

Step = tuple[int, int, Entry]  # which conversation, pause before it in ms, the entry
Sessions = dict[str, tuple[Session, tuple[str, ...]]]

STEPS = st.lists(st.tuples(st.integers(0, 3), PAUSES, entries(channel="web")), min_size=1, max_size=40)


def one_by_one(steps: list[tuple[Strand, int, Receive]], rules: BotRules) -> Sessions:
    """No server, no batches: each entry decided on what the one before left."""
    states: dict[Strand, State] = defaultdict(State)
    events: list[Event] = []
    kept: list[tuple[str, Message]] = []
    ends: list[tuple[Strand, int, Receive | Wake]] = [(strand, FAR_MS, Wake()) for strand in STRANDS]
    for strand, at_ms, command in [*steps, *ends]:
        decision = decide(strand, states[strand], command, rules, at_ms)
        states[strand] = decision.state
        events += decision.events
        kept += decision.messages
    ids: dict[str, list[str]] = defaultdict(list)
    for session, message in kept:
        ids[session].append(message.message_id)
    return {event.session.id: (event.session, tuple(ids[event.session.id])) for event in events if event.type == "session.closed"}


async def all_at_once(steps: list[tuple[Strand, int, Receive]], rules: BotRules, url: str, *, seed: int) -> Sessions:
    """Three processes with caches of their own take random batches in turn, while two sweep as far as the time has come."""
    chance = random.Random(seed)  # noqa: S311 - a shuffle, and the same one for the same seed
    redis = Redis.from_url(url, protocol=2)
    await redis.flushdb()
    pipes = [Pipe(redis, timeout_s=10) for _ in range(3)]
    ledgers = [_ledger(pipe, rules) for pipe in pipes]
    sweeps = [Sweep(pipe=pipe, ledger=ledger, shards=SHARDS, batch=3) for pipe, ledger in zip(pipes, ledgers, strict=True)]
    try:
        rest = list(steps)
        while rest:
            size = chance.randint(1, 8)
            batch, rest = rest[:size], rest[size:]
            owner = {strand: chance.choice(ledgers) for strand in STRANDS}
            posted = [owner[strand].submit(strand, command, at_ms=at_ms) for strand, at_ms, command in batch]
            until_ms = batch[0][1]  # later, a sweep would be right to close what a later entry of this batch still continues
            await asyncio.gather(*posted, *(chance.choice(sweeps).run_bot("bot", until_ms) for _ in range(2)))
        await asyncio.gather(*(sweep.run_bot("bot", FAR_MS) for sweep in sweeps))
        return await _sessions(redis)
    finally:
        for pipe in pipes:
            await pipe.stop()
        await redis.aclose()


def _ledger(pipe: Pipe, rules: BotRules) -> Ledger:
    clock = Clock()
    ground = BotContext(rules, sandbox=True)
    script = CommitScript(pipe, clock, max_skew_ms=500)
    return Ledger(pipe=pipe, script=script, clock=clock, shards=SHARDS, context_of=lambda _: ground, cache_size=2)


async def _sessions(redis: Redis) -> Sessions:
    found: Sessions = {}
    for shard in range(SHARDS):
        for _, fields in await redis.execute_command("XRANGE", keys.events(shard), "-", "+"):
            for event in msgpack.decode(fields[b"e"], type=EventRecord).events:
                if event.type == "session.closed":
                    assert event.session.id not in found
                    transcript = await redis.execute_command("HGETALL", keys.messages(shard, event.session.id))
                    pairs = [item for pair in transcript.items() for item in pair]
                    ids = tuple(message.message_id for message in messages_of(pairs))
                    found[event.session.id] = event.session, ids
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, policy=policies(), seed=st.integers(0, 2**16))
def test_any_batching_by_any_processes_gives_the_same_sessions(
    redis_url: str, steps: list[Step], policy: Policy, seed: int
) -> None:
    """Every field of every session, and every message in its place."""
    check(redis_url, steps, policy, seed)


@pytest.mark.slow
@settings(max_examples=1_000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, policy=policies(), seed=st.integers(0, 2**16))
def test_any_batching_at_length(redis_url: str, steps: list[Step], policy: Policy, seed: int) -> None:
    """The same, a thousand times."""
    check(redis_url, steps, policy, seed)


def check(url: str, steps: list[Step], policy: Policy, seed: int) -> None:
    rules = BotRules("bot", PolicyVersion(1, NOON_MS, policy))
    timed, at_ms = [], NOON_MS
    for number, (conversation, pause, entry) in enumerate(steps):
        at_ms += pause
        timed.append((STRANDS[conversation], at_ms, Receive(entry, f"m{number}")))

    expected = one_by_one(timed, rules)
    got = asyncio.run(all_at_once(timed, rules, url, seed=seed))

    assert got == expected
