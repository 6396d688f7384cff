"""The ledger on a real Redis: one decision, one commit, whoever else writes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis

from app.clock import Clock
from app.domain.entry import Entry
from app.domain.errors import InvalidEntry
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Close, Command, Decision, Receive, SessionQuota, State, Wake
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live import keys
from app.live.commit import CommitScript
from app.live.fold import CommandOutcome, StuckConversation
from app.live.ledger import BotContext, Ledger
from app.live.lua import RedisFull
from app.live.pipe import Pipe, RedisReply
from app.live.view import LiveView

SHARDS = 4
RULES = BotRules("bot", PolicyVersion(1, 0, Policy()), SessionQuota(0, 0))
STRAND = Strand("bot", "web:ann")
MINUTE_MS = 60_000

MakeLedger = Callable[..., Ledger]


def said(text: str, message_id: str | None = None, *, user: str = "ann") -> Receive:
    return Receive(Entry(user_id=user, role="user", text=text, message_id=message_id), message_id or f"gen-{text}")


@pytest.fixture
async def make_ledger(redis: Redis) -> AsyncIterator[MakeLedger]:
    """Make ledgers as processes have them: each with a connection, a clock and a cache of its own."""
    pipes: list[Pipe] = []

    def make(*, pipe: Pipe | None = None, clock: Clock | None = None) -> Ledger:
        own = pipe or Pipe(redis, timeout_s=5)
        pipes.append(own)
        known = clock or Clock()
        script = CommitScript(own, known, max_skew_ms=500)
        return Ledger(pipe=own, script=script, clock=known, shards=SHARDS, context_of=lambda _: BotContext(RULES))

    yield make
    for pipe in pipes:
        await pipe.stop()


@pytest.fixture
async def view(redis: Redis) -> AsyncIterator[LiveView]:
    pipe = Pipe(redis, timeout_s=5)
    yield LiveView(pipe, shards=SHARDS)
    await pipe.stop()


def neighbour() -> Strand:
    """Another conversation of the same shard, whose commands go with the same commits."""
    strands = (Strand("bot", f"web:user{number}") for number in range(99))
    return next(strand for strand in strands if keys.shard_of(strand, SHARDS) == keys.shard_of(STRAND, SHARDS))


async def calls(redis: Redis) -> int:
    """How many times a script was called so far."""
    stats = await redis.info("commandstats")
    return int(stats["cmdstat_evalsha"]["calls"])


async def test_first_entry_opens_and_the_next_continues(make_ledger: MakeLedger) -> None:
    """One round trip each, and the second stands on the first."""
    ledger = make_ledger()

    first = await ledger.submit(STRAND, said("hello"))
    second = await ledger.submit(STRAND, said("again"))

    assert first.answer is not None
    assert second.answer is not None
    assert (first.answer.session, first.answer.sequence) == ("opened", 1)
    assert (second.answer.session, second.answer.sequence) == ("continued", 2)
    assert first.answer.session_id == second.answer.session_id


async def test_many_entries_of_one_conversation_are_one_write(make_ledger: MakeLedger, redis: Redis) -> None:
    """Group commit: what is submitted together is folded, and goes out in one call."""
    ledger = make_ledger()
    await ledger.submit(STRAND, said("first"))
    before = await calls(redis)

    outcomes = await asyncio.gather(*(ledger.submit(STRAND, said(f"text {i}")) for i in range(100)))

    assert [outcome.answer.sequence for outcome in outcomes if outcome.answer] == list(range(2, 102))
    assert await calls(redis) == before + 1


async def test_repeat_gets_the_first_answer_and_changes_nothing(make_ledger: MakeLedger, view: LiveView) -> None:
    """`message_id` is the bot's own: sent twice, in one batch or later, from any process, it counts once."""
    here, there = make_ledger(), make_ledger()
    first, same_batch = await asyncio.gather(here.submit(STRAND, said("hello", "m1")), here.submit(STRAND, said("hello", "m1")))
    later = await there.submit(STRAND, said("hello", "m1"))
    after = await there.submit(STRAND, said("next", "m2"))

    assert first.duplicate is False
    assert (same_batch, later) == (CommandOutcome(first.answer, duplicate=True), CommandOutcome(first.answer, duplicate=True))
    assert after.answer is not None
    assert after.answer.sequence == 2
    assert [message.message_id for message in await view.messages(after.answer.session_id or "")] == ["m1", "m2"]


async def test_repeat_of_an_entry_of_the_session_before_is_known(make_ledger: MakeLedger) -> None:
    """A repeat is known for 15 minutes after its session closed."""
    ledger = make_ledger()
    first = await ledger.submit(STRAND, said("hello", "m1"))
    assert first.answer is not None
    await ledger.submit(STRAND, Close(first.answer.session_id or ""))

    repeat = await ledger.submit(STRAND, said("hello", "m1"))

    assert repeat == CommandOutcome(first.answer, duplicate=True)


async def test_cached_states_are_bounded_by_their_bytes(redis: Redis) -> None:
    """Ten states of some 40 KB are not cached in 100 KB; those that were dropped are read again and continue."""
    pipe, clock = Pipe(redis, timeout_s=5), Clock()
    script = CommitScript(pipe, clock, max_skew_ms=500)
    ledger = Ledger(
        pipe=pipe, script=script, clock=clock, shards=SHARDS, context_of=lambda _: BotContext(RULES), cache_bytes=100_000
    )
    strands = [Strand("bot", f"web:user{number}") for number in range(10)]
    large = Receive(Entry(user_id="ann", role="user", context={"long": "x" * 40_000}), "m1")

    for strand in strands:
        await ledger.submit(strand, large)
    cached = [len(at.state) for at in ledger._cache.values()]
    again = [await ledger.submit(strand, said("again")) for strand in strands]
    await pipe.stop()

    assert len(cached) == 2
    assert sum(cached) < 100_000
    assert [outcome.answer.sequence for outcome in again if outcome.answer] == [2] * 10


async def test_processes_that_write_at_once_agree(make_ledger: MakeLedger) -> None:
    """A lost compare-and-set is decided again: no sequence number is skipped or given twice."""
    ledgers = [make_ledger() for _ in range(4)]

    async def talk(ledger: Ledger, name: str) -> list[int]:
        outcomes = [await ledger.submit(STRAND, said(f"{name} {i}", f"{name}-{i}")) for i in range(50)]
        return [outcome.answer.sequence for outcome in outcomes if outcome.answer]

    heard = await asyncio.gather(*(talk(ledger, f"p{i}") for i, ledger in enumerate(ledgers)))

    assert sorted(number for numbers in heard for number in numbers) == list(range(1, 201))


async def test_wake_closes_at_the_deadline_once(make_ledger: MakeLedger, redis: Redis) -> None:
    """The first process to notice ends the session at its deadline; the others change nothing."""
    ledgers = [make_ledger() for _ in range(3)]
    opened = await ledgers[0].submit(STRAND, said("hello"), at_ms=1_000)
    assert opened.answer is not None

    late = 1_000 + 99 * MINUTE_MS
    await asyncio.gather(*(ledger.submit(STRAND, Wake(), at_ms=late) for ledger in ledgers))

    shard = keys.shard_of(STRAND, SHARDS)
    assert await redis.xlen(keys.events(shard)) == 1 + 1  # one record for the opening, one for the close
    assert await redis.zcard(keys.due(shard)) == 0
    assert await redis.zcard(keys.live(shard, "bot")) == 0


async def test_session_is_found_by_id_while_open_and_right_after(make_ledger: MakeLedger, view: LiveView) -> None:
    """Between the close and the archive a session is never reported missing."""
    ledger = make_ledger()
    opened = await ledger.submit(STRAND, said("hello"))
    assert opened.answer is not None
    assert opened.answer.session_id is not None
    live = await view.find(opened.answer.session_id)
    await ledger.submit(STRAND, Close(opened.answer.session_id))
    closed = await view.find(opened.answer.session_id)

    assert live is not None
    assert closed is not None
    assert (live.strand, live.session.closed_at_ms) == (STRAND, None)
    assert (closed.strand, closed.session.reason) == (STRAND, "api")


async def test_clock_that_is_off_is_set_right_by_the_refusal(make_ledger: MakeLedger) -> None:
    """A process whose clock is ten minutes off writes nothing by it: it learns the time and decides again."""
    clock = Clock()
    clock.observe(0, sent_ms=0, received_ms=0)
    ledger = make_ledger(clock=clock)

    outcome = await ledger.submit(STRAND, said("hello"))

    assert outcome.answer is not None
    assert abs(outcome.answer.received_at_ms - clock.now_ms()) < 5_000
    assert outcome.answer.received_at_ms > 1_700_000_000_000


class LosesReplies(Pipe):
    """A connection that breaks after the command was executed, before its reply arrives."""

    losses = 0

    async def call(self, *args: str | bytes | int) -> RedisReply:
        reply = await super().call(*args)
        if args[0] == "EVALSHA" and self.losses:
            self.losses -= 1
            raise Unavailable("the reply was lost") from ConnectionResetError()
        return reply


async def test_lost_reply_counts_nothing_twice(make_ledger: MakeLedger, redis: Redis, view: LiveView) -> None:
    """The retry finds that its own commit stands, also for entries without an id of the bot's."""
    pipe = LosesReplies(redis, timeout_s=5)
    ledger = make_ledger(pipe=pipe)
    await ledger.submit(STRAND, said("loads the script"))
    pipe.losses = 1

    outcome = await ledger.submit(STRAND, said("once"))

    assert outcome.answer is not None
    assert (outcome.answer.sequence, outcome.duplicate) == (2, False)
    assert len(await view.messages(outcome.answer.session_id or "")) == 2


async def test_full_redis_refuses_entries_and_lets_sessions_close(make_ledger: MakeLedger, redis: Redis) -> None:
    """Nothing is half written, and what makes room again goes on."""
    ledger = make_ledger()
    opened = await ledger.submit(STRAND, said("hello"), at_ms=1_000)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="full"):
            await ledger.submit(STRAND, said("no room"))
        await ledger.submit(STRAND, Wake(), at_ms=1_000 + 60 * MINUTE_MS)
    finally:
        await redis.config_set("maxmemory", 0)

    after = await ledger.submit(STRAND, said("room again"))
    assert opened.answer is not None
    assert after.answer is not None
    assert after.answer.session == "opened"
    assert after.answer.session_id != opened.answer.session_id


async def test_state_that_cannot_be_read_fails_no_other(make_ledger: MakeLedger, redis: Redis) -> None:
    """One conversation's state cannot be read: its own commands fail, those that share a commit with them do not."""
    await redis.set(keys.state(keys.shard_of(STRAND, SHARDS), keys.member(STRAND)), b"x.1:\xc1 no state")
    ledger = make_ledger()

    failed, good = await asyncio.gather(
        ledger.submit(STRAND, said("hello")), ledger.submit(neighbour(), said("hello")), return_exceptions=True
    )

    assert isinstance(failed, Unavailable)
    assert isinstance(good, CommandOutcome)
    assert good.answer is not None


async def test_bug_with_one_conversation_fails_no_other(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that breaks on one entry fails that entry alone."""

    def breaks(strand: Strand, state: State, command: Command, bot: BotRules, now_ms: int) -> Decision:  # noqa: PLR0917 - as decide
        if isinstance(command, Receive) and command.message_id == "bad":
            raise ZeroDivisionError
        return decide(strand, state, command, bot, now_ms)

    monkeypatch.setattr("app.live.fold.decide", breaks)
    ledger = make_ledger()

    bad, good = await asyncio.gather(
        ledger.submit(STRAND, said("x", "bad")), ledger.submit(STRAND, said("y", "good")), return_exceptions=True
    )

    assert isinstance(bad, Unavailable)
    assert isinstance(good, CommandOutcome)
    assert good.answer is not None
    assert good.answer.sequence == 1


@pytest.mark.parametrize("command", (said("hello"), Wake()))
@pytest.mark.parametrize("value", (b"nocolon", b":no version", b"\xff\xfe:no text", "a hash"))
async def test_value_that_no_commit_wrote_fails_no_other(
    make_ledger: MakeLedger, redis: Redis, value: bytes | str, command: Command
) -> None:
    """It is no state at all: that conversation's commands fail and leave it as it is, its neighbours' stand."""
    shard = keys.shard_of(STRAND, SHARDS)
    name = keys.state(shard, keys.member(STRAND))
    await (redis.hset(name, "a", "hash") if isinstance(value, str) else redis.set(name, value))
    before = await redis.dump(name)
    ledger = make_ledger()

    failed, good = await asyncio.gather(
        ledger.submit(STRAND, command), ledger.submit(neighbour(), said("hello")), return_exceptions=True
    )

    assert isinstance(failed, StuckConversation)
    assert isinstance(good, CommandOutcome)
    assert await redis.dump(name) == before


@pytest.mark.parametrize("value", (b"\xc1", None))
async def test_message_that_cannot_be_read_fails_no_other(make_ledger: MakeLedger, redis: Redis, value: bytes | None) -> None:
    """The answer to a repeat cannot be read, or nothing of the session: the neighbour's commit stands."""
    ledger = make_ledger()
    first = await ledger.submit(STRAND, said("hello", "m1"))
    assert first.answer is not None
    name = keys.messages(keys.shard_of(STRAND, SHARDS), first.answer.session_id or "")
    if value is None:
        await redis.delete(name)
        await redis.set(name, "no hash")
    else:
        await redis.hset(name, "m1", value)

    failed, good = await asyncio.gather(
        ledger.submit(STRAND, said("hello", "m1")), ledger.submit(neighbour(), said("hello")), return_exceptions=True
    )

    assert isinstance(failed, StuckConversation)
    assert isinstance(good, CommandOutcome)


async def test_close_behind_an_entry_goes_on_when_redis_is_full(make_ledger: MakeLedger, redis: Redis) -> None:
    """An entry that is refused for want of room takes down what waits behind it of its own kind, and no close."""
    ledger = make_ledger()
    opened = await ledger.submit(STRAND, said("hello"))
    assert opened.answer is not None
    session = opened.answer.session_id or ""
    await redis.config_set("maxmemory", 1)
    try:
        entry, close, behind = await asyncio.gather(
            ledger.submit(neighbour(), said("no room")),
            ledger.submit(STRAND, Close(session)),
            ledger.submit(neighbour(), said("none either")),
            return_exceptions=True,
        )
    finally:
        await redis.config_set("maxmemory", 0)

    assert isinstance(entry, RedisFull)
    assert isinstance(behind, RedisFull)
    assert isinstance(close, CommandOutcome)
    assert close.answer is not None
    assert close.answer.session_id == session


@pytest.mark.parametrize("users", (("ann",), ("ann", "ben")))
async def test_commit_is_bounded_by_its_bytes(make_ledger: MakeLedger, redis: Redis, users: tuple[str, ...]) -> None:
    """Large entries of one conversation, or of several, go out a few megabytes at a time; all are taken, in order."""
    ledger = make_ledger()
    await ledger.submit(STRAND, said("first"))
    strands = [STRAND, neighbour()][: len(users)]
    entries = [
        (strand, Receive(Entry(user_id="ann", role="user", message_id=f"m{i}", metadata={"a": "x" * 900_000}), f"m{i}"))
        for i in range(20)
        for strand in strands
    ]
    before = await calls(redis)

    outcomes = await asyncio.gather(*(ledger.submit(strand, entry) for strand, entry in entries))

    sequences = [outcome.answer.sequence for outcome in outcomes if outcome.answer]
    assert sequences[:: len(strands)] == list(range(2, 22))
    assert await calls(redis) - before - len(entries) // 4 in {0, 1}  # the last call of each conversation may have less


async def test_entry_that_cannot_be_measured_is_refused_alone(make_ledger: MakeLedger) -> None:
    """A number that no encoding holds: only its sender gets the error."""
    ledger = make_ledger()
    endless = Receive(Entry(user_id="ann", role="user", metadata={"a": 1 << 70}), "m1")

    refused, good = await asyncio.gather(
        ledger.submit(STRAND, endless), ledger.submit(neighbour(), said("hello")), return_exceptions=True
    )

    assert isinstance(refused, InvalidEntry)
    assert isinstance(good, CommandOutcome)


Settled = list[str]


def send(ledger: Ledger, settled: Settled, bot: str, entries: int, *, conversations: int) -> list[asyncio.Future[CommandOutcome]]:
    """Submit entries of a bot; its name is noted when each has its outcome."""
    futures = []
    for number in range(entries):
        strand = Strand(bot, f"web:user{number % conversations}")
        future = ledger.submit(strand, said(f"{bot}-{number}", f"{bot}-{number}", user=f"user{number % conversations}"))
        future.add_done_callback(lambda _: settled.append(bot))
        futures.append(future)
    return futures


@pytest.mark.parametrize("conversations", (1, 400))
async def test_an_entry_goes_out_with_the_next_call_however_much_another_bot_sent(
    make_ledger: MakeLedger, conversations: int
) -> None:
    """Bots alternate: of 2,000 entries of another bot that came before it, only a part of a call goes out with it."""
    ledger, settled = make_ledger(), Settled()
    await ledger.submit(Strand("quiet", "web:user0"), said("hello"))

    busy = send(ledger, settled, "busy", 2_000, conversations=conversations)
    await asyncio.gather(*busy, *send(ledger, settled, "quiet", 1, conversations=1))

    assert settled.index("quiet") <= 2 * 64


@pytest.mark.parametrize("conversations", (1, 4))
async def test_an_entry_does_not_wait_for_all_calls_of_another_bot(make_ledger: MakeLedger, conversations: int) -> None:
    """A call under way cannot be taken back, so one bot has two large ones at most, and the other calls are there for others."""
    ledger, settled = make_ledger(), Settled()
    await ledger.submit(Strand("quiet", "web:user0"), said("hello"))

    busy = send(ledger, settled, "busy", 4_000, conversations=conversations)
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # the calls have begun
    await asyncio.gather(*busy, *send(ledger, settled, "quiet", 1, conversations=1))

    assert settled.index("quiet") <= 2 * 500


async def test_decisions_leave_room_to_other_work(make_ledger: MakeLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two iterations of the event loop a call decides for a millisecond, here ten decisions."""
    ledger, iterations, decided_in = make_ledger(), 0, list[int]()

    def noted(*args: Any) -> Decision:  # noqa: ANN401 - those of `decide`
        decided_in.append(iterations)
        return decide(*args)

    monkeypatch.setattr("app.live.fold.decide", noted)
    monkeypatch.setattr("app.live.fold.monotonic_ms", stepping(0.1))
    sent = asyncio.gather(*send(ledger, [], "busy", 500, conversations=1))
    while not sent.done():
        iterations += 1
        await asyncio.sleep(0)

    assert len(decided_in) == 500
    assert max(Counter(decided_in).values()) <= 11


async def test_decisions_that_take_long_go_out_in_several_commits(
    make_ledger: MakeLedger, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instant is not committed long after it was decided with; here two or three decisions take all the time of a call."""
    ledger = make_ledger()
    await ledger.submit(STRAND, said("first"))
    before = await calls(redis)
    clock = stepping(60)
    monkeypatch.setattr("app.live.fold.monotonic_ms", clock)
    monkeypatch.setattr("app.live.ledger.monotonic_ms", clock)

    outcomes = await asyncio.gather(*(ledger.submit(STRAND, said(f"text {number}")) for number in range(20)))

    assert [outcome.answer.sequence for outcome in outcomes if outcome.answer] == list(range(2, 22))
    assert await calls(redis) - before > 5


def stepping(step_ms: float) -> Callable[[], float]:
    """A clock that goes on by so much with each look."""
    instants = count(1)
    return lambda: next(instants) * step_ms
