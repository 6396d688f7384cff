"""The same entries in any batching, by any interleaving of processes and sweepers, give the same sessions and late entries."""

import asyncio
import random
from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.clock import Clock
from app.closing.sweep import Sweep
from app.domain.entry import Entry
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Event, Message, Receive, Session, State, UnassignedEntry, Wake
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.live import keys
from app.live.codec import decode_record, decode_session
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


class Outcome(NamedTuple):
    """All that is left when everything is over: sessions by id with their messages, and entries without a session."""

    closed: dict[str, tuple[Session, tuple[str, ...]]]
    updated: dict[str, Session]
    unassigned: list[tuple[str, str]]


STEPS = st.lists(st.tuples(st.integers(0, 3), PAUSES, entries(channel="web")), min_size=1, max_size=40)


def one_by_one(steps: list[tuple[Strand, int, Receive]], rules: BotRules) -> Outcome:
    """No server, no batches: each entry decided on the state that the one before left."""
    states: dict[Strand, State] = defaultdict(State)
    events: list[Event] = []
    kept: list[tuple[str, Message]] = []
    unassigned: list[UnassignedEntry] = []
    ends: list[tuple[Strand, int, Receive | Wake]] = [(strand, FAR_MS, Wake()) for strand in STRANDS]
    for strand, at_ms, command in [*steps, *ends]:
        decision = decide(strand, states[strand], command, rules, at_ms)
        states[strand] = decision.state
        events += decision.events
        kept += decision.messages
        unassigned += decision.unassigned
    ids: dict[str, list[str]] = defaultdict(list)
    for session, message in kept:
        ids[session].append(message.message_id)
    closed = {
        event.session.id: (event.session, tuple(ids[event.session.id])) for event in events if event.type == "session.closed"
    }
    updated = {event.session.id: event.session for event in events if event.type == "session.updated"}
    return Outcome(closed, updated, _named(unassigned))


async def all_at_once(steps: list[tuple[Strand, int, Receive]], rules: BotRules, url: str, *, seed: int) -> Outcome:
    """Three processes with caches of their own take random batches in turn, while two sweep as far as the time has come."""
    chance = random.Random(seed)  # noqa: S311 - a shuffle, and the same one for the same seed
    redis = Redis.from_url(url, protocol=2)
    await redis.flushdb()
    pipes = [Pipe(redis, timeout_s=10) for _ in range(3)]
    ledgers = [_ledger(pipe, rules) for pipe in pipes]
    sweeps = [Sweep(pipe=pipe, ledger=ledger, shards=SHARDS, batch=3) for pipe, ledger in zip(pipes, ledgers, strict=True)]
    try:
        waiting = list(steps)
        while waiting:
            size = chance.randint(1, 8)
            batch, waiting = waiting[:size], waiting[size:]
            owner = {strand: chance.choice(ledgers) for strand in STRANDS}
            posted = [owner[strand].submit(strand, command, at_ms=at_ms) for strand, at_ms, command in batch]
            until_ms = batch[0][1]  # any later, and a sweep would rightly close a session that an entry of this batch continues
            await asyncio.gather(*posted, *(chance.choice(sweeps).run_bot("bot", until_ms) for _ in range(2)))
        await asyncio.gather(*(sweep.run_bot("bot", FAR_MS) for sweep in sweeps))
        return await _outcome(redis)
    finally:
        for pipe in pipes:
            await pipe.stop()
        await redis.aclose()


def _ledger(pipe: Pipe, rules: BotRules) -> Ledger:
    clock = Clock()
    context = BotContext(rules, sandbox=True)
    script = CommitScript(pipe, clock, max_skew_ms=500)
    return Ledger(pipe=pipe, script=script, clock=clock, shards=SHARDS, context_of=lambda _: context, cache_bytes=2_000)


async def _outcome(redis: Redis) -> Outcome:
    outcome = Outcome({}, {}, [])
    unassigned: list[UnassignedEntry] = []
    for shard in range(SHARDS):
        for _, fields in await redis.execute_command("XRANGE", keys.events(shard), "-", "+"):
            record = decode_record(fields[b"e"])
            unassigned += record.unassigned
            for event in record.events:
                if event.type == "session.closed":
                    assert event.session.id not in outcome.closed
                    outcome.closed[event.session.id] = event.session, await _transcript(redis, shard, event.session.id)
                elif event.type == "session.updated":
                    outcome.updated[event.session.id] = event.session
        for session in outcome.updated:
            if keys.shard_of_session(session, SHARDS) == shard:
                stored = await redis.execute_command("HGET", keys.messages(shard, session), keys.CLOSED_FIELD)
                assert decode_session(stored) == outcome.updated[session]
    outcome.unassigned.extend(_named(unassigned))
    return outcome


async def _transcript(redis: Redis, shard: int, session: str) -> tuple[str, ...]:
    transcript = await redis.execute_command("HGETALL", keys.messages(shard, session))
    messages = messages_of([item for pair in transcript.items() for item in pair])
    assert [message.sequence for message in messages] == list(range(1, len(messages) + 1))
    return tuple(message.message_id for message in messages)


def _named(unassigned: list[UnassignedEntry]) -> list[tuple[str, str]]:
    return sorted((entry.message.message_id, entry.reason) for entry in unassigned)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, policy=policies(), seed=st.integers(0, 2**16))
def test_any_batching_by_any_processes_gives_the_same_sessions(
    redis_url: str, steps: list[Step], policy: Policy, seed: int
) -> None:
    """Every field of every session, every message in its place, and every late entry where it belongs."""
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
