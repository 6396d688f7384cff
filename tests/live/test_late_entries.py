"""Entries that come after the end, on a real Redis: stored once, wherever they belong, through repeats and crashes."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from app.clock import Clock
from app.domain.entry import Entry, EntryType
from app.domain.instants import DAY_MS
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import Answer, BotRules, Command, Receive, Wake
from app.domain.rules.ending import RECENT_MS
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live import keys
from app.live.codec import decode_session
from app.live.commit import CommitScript
from app.live.event_stream import GROUP, EventStream, StreamRecord
from app.live.ledger import BotContext, Ledger
from app.live.pipe import Pipe, RedisReply
from app.live.view import LiveView

SHARDS = 2
STRAND = Strand("bot", "web:ann")
SHARD = keys.shard_of(STRAND, SHARDS)
NOON_MS = 1_700_049_600_000
MINUTE_MS = 60_000
END_MS = NOON_MS + 15 * MINUTE_MS
RULES = BotRules("bot", PolicyVersion(1, 0, Policy()))

MakeLedger = Callable[..., Ledger]


def said(message_id: str, kind: EntryType = "message", **fields: object) -> Receive:
    return Receive(Entry(user_id="ann", role="user", type=kind, message_id=message_id, **fields), message_id)  # type: ignore[arg-type]


def unnamed(kind: EntryType) -> Receive:
    """An entry whose id was generated: the bot cannot repeat it, only the ledger does."""
    return Receive(Entry(user_id="ann", role="user", type=kind), "gen-1")


class LosesReplies(Pipe):
    """A connection that breaks after the command was executed, before its reply arrives."""

    losses = 0

    async def call(self, *args: str | bytes | int) -> RedisReply:
        reply = await super().call(*args)
        if args[0] == "EVALSHA" and self.losses:
            self.losses -= 1
            raise Unavailable("the reply was lost") from ConnectionResetError()
        return reply


@pytest.fixture
async def pipe(redis: Redis) -> AsyncIterator[LosesReplies]:
    made = LosesReplies(redis, timeout_s=5)
    yield made
    await made.stop()


@pytest.fixture
def make_ledger(pipe: Pipe) -> MakeLedger:
    """Make ledgers with caches of their own, for a bot with a clock of its own."""

    def make() -> Ledger:
        clock = Clock()
        script = CommitScript(pipe, clock, max_skew_ms=500)
        return Ledger(pipe=pipe, script=script, clock=clock, shards=SHARDS, context_of=lambda _: BotContext(RULES, sandbox=True))

    return make


@pytest.fixture
def view(pipe: Pipe) -> LiveView:
    return LiveView(pipe, shards=SHARDS)


async def answer_to(ledger: Ledger, command: Command, *, at_ms: int) -> Answer:
    outcome = await ledger.submit(STRAND, command, at_ms=at_ms)
    assert outcome.answer is not None
    return outcome.answer


async def ended(ledger: Ledger) -> str:
    """A session that the silence has closed; its id."""
    opened = await answer_to(ledger, said("m1"), at_ms=NOON_MS)
    await ledger.submit(STRAND, Wake(), at_ms=END_MS)
    return opened.session_id or ""


async def records(pipe: Pipe) -> list[StreamRecord]:
    """All records that are new to the consumer group."""
    return await stream(pipe).take()


def stream(pipe: Pipe) -> EventStream:
    return EventStream(pipe=pipe, shards=SHARDS, consumer="test", batch=100, claim_idle_ms=60_000)


async def test_a_late_entry_is_stored_with_its_closed_session(make_ledger: MakeLedger, view: LiveView, pipe: Pipe) -> None:
    """Transcript, session and event are one commit; the session stays closed and is due no more."""
    ledger = make_ledger()
    session = await ended(ledger)

    answer = await answer_to(ledger, said("m2", "resolved"), at_ms=END_MS + 1)
    found, messages = await view.find(session), await view.messages(session)

    assert (answer.session_id, answer.session, answer.sequence) == (session, "late", 2)
    assert [(message.message_id, message.late) for message in messages] == [("m1", False), ("m2", True)]
    assert found is not None
    assert (found.session.late_entries, found.session.outcome, found.session.reason) == (1, "resolved", "inactivity")
    assert [event.type for record in await records(pipe) for event in record.events][-1] == "session.updated"
    assert await view.count("bot") == 0
    assert await pipe.call("ZCARD", keys.due(SHARD, "bot")) == 0


async def test_a_repeated_late_entry_gets_its_first_answer(make_ledger: MakeLedger, view: LiveView) -> None:
    """By the process that took it, and by one that has never met the conversation."""
    ledger = make_ledger()
    session = await ended(ledger)
    first = await answer_to(ledger, said("m2", "survey.sent"), at_ms=END_MS + 1)

    again = [await each.submit(STRAND, said("m2", "survey.sent"), at_ms=END_MS + 2) for each in (ledger, make_ledger())]
    found = await view.find(session)

    assert [(outcome.answer, outcome.duplicate) for outcome in again] == [(first, True)] * 2
    assert found is not None
    assert found.session.late_entries == 1


@pytest.mark.parametrize("command", (said("m2", "survey.sent"), unnamed("survey.sent")), ids=("named", "unnamed"))
async def test_a_lost_reply_stores_a_late_entry_once(
    make_ledger: MakeLedger, view: LiveView, pipe: LosesReplies, command: Receive
) -> None:
    """The retry finds its own commit, also for an entry without an id of the bot's."""
    ledger = make_ledger()
    session = await ended(ledger)
    pipe.losses = 1

    answer = await answer_to(ledger, command, at_ms=END_MS + 1)
    found = await view.find(session)

    assert (answer.session, answer.sequence) == ("late", 2)
    assert found is not None
    assert found.session.late_entries == 1
    assert len(await view.messages(session)) == 2
    assert len(await records(pipe)) == 3  # opened, closed, updated


async def test_processes_that_take_late_entries_at_once_lose_none(make_ledger: MakeLedger, view: LiveView) -> None:
    """Each loser of the compare-and-set decides again on the session as the winner left it."""
    ledgers = [make_ledger() for _ in range(3)]
    session = await ended(ledgers[0])

    outcomes = await asyncio.gather(
        *(ledgers[number % 3].submit(STRAND, said(f"late-{number}", "survey.sent"), at_ms=END_MS + 1) for number in range(12))
    )
    found = await view.find(session)

    assert sorted(outcome.answer.sequence for outcome in outcomes if outcome.answer) == list(range(2, 14))
    assert found is not None
    assert found.session.late_entries == 12


async def test_a_late_entry_outlives_the_transcript(make_ledger: MakeLedger, view: LiveView, redis: Redis) -> None:
    """The session is archived and its hash has expired. The remainder recognises repeats and is no transcript."""
    ledger = make_ledger()
    session = await ended(ledger)
    await redis.delete(keys.messages(SHARD, session))

    first = await answer_to(ledger, said("m2", "survey.sent"), at_ms=END_MS + 1)
    again = await make_ledger().submit(STRAND, said("m2", "survey.sent"), at_ms=END_MS + 2)
    closed = await redis.hget(keys.messages(SHARD, session), keys.CLOSED_FIELD)

    assert (again.answer, again.duplicate) == (first, True)
    assert isinstance(closed, bytes)
    assert decode_session(closed).late_entries == 1
    assert await view.find(session) is None
    assert await view.messages(session) == []
    assert await view.messages_named(session, ["m2"]) == []


async def test_the_release_of_an_update_lets_its_hash_expire(make_ledger: MakeLedger, pipe: Pipe, redis: Redis) -> None:
    """Also where nothing else is left of it; released twice, nothing changes."""
    ledger = make_ledger()
    session = await ended(ledger)
    name, consumer = keys.messages(SHARD, session), stream(pipe)
    await consumer.release(await consumer.take())
    await redis.delete(name)
    await answer_to(ledger, said("m2", "survey.sent"), at_ms=END_MS + 1)
    before, taken = await redis.pttl(name), await consumer.take()

    for _ in range(2):
        await consumer.release(taken)

    assert before == -1
    assert [(record.ended, record.updated) for record in taken] == [([], [session])]
    assert 0 < await redis.pttl(name) <= RECENT_MS
    assert await redis.xlen(keys.events(SHARD)) == 0


@pytest.mark.parametrize(
    ("at_ms", "reason"), ((NOON_MS, "no_session"), (END_MS + DAY_MS, "too_late")), ids=("no session", "after 24 hours")
)
async def test_an_entry_without_a_session_goes_to_the_stream(
    make_ledger: MakeLedger, pipe: Pipe, at_ms: int, reason: str
) -> None:
    """In a record without an event; it is answered, and opens nothing."""
    ledger = make_ledger()
    if reason == "too_late":
        await ended(ledger)
        await records(pipe)

    answer = await answer_to(ledger, said("m2", "survey.sent"), at_ms=at_ms)
    (record,) = await records(pipe)

    assert (answer.session_id, answer.session) == (None, "none")
    assert (record.strand, record.events) == (STRAND, ())
    assert [(entry.reason, entry.message.message_id) for entry in record.unassigned] == [(reason, "m2")]
    assert await pipe.call("ZCARD", keys.live(SHARD, "bot")) == 0


async def test_a_lost_reply_keeps_an_entry_without_a_session_once(make_ledger: MakeLedger, pipe: LosesReplies) -> None:
    """The retry finds its own commit, though no message hash names the entry."""
    ledger = make_ledger()
    await answer_to(ledger, said("m0", "search"), at_ms=NOON_MS)  # loads the script
    pipe.losses = 1

    answer = await answer_to(ledger, unnamed("survey.sent"), at_ms=NOON_MS + 1)

    assert answer.session == "none"
    assert [entry.message.message_id for record in await records(pipe) for entry in record.unassigned] == ["m0", "gen-1"]


async def test_late_and_unassigned_entries_survive_a_dead_consumer(make_ledger: MakeLedger, pipe: Pipe, redis: Redis) -> None:
    """A consumer read them and died: another one claims the same records."""
    ledger = make_ledger()
    await answer_to(ledger, said("m0", "search"), at_ms=NOON_MS)
    session = await ended(ledger)
    await answer_to(ledger, said("m2", "survey.sent"), at_ms=END_MS + 1)
    dead = await records(pipe)
    claimed = await EventStream(pipe=pipe, shards=SHARDS, consumer="b", batch=100, claim_idle_ms=0).take()

    assert sorted(record.id for record in claimed) == sorted(record.id for record in dead)
    assert [session for record in claimed for session in record.updated] == [session]
    assert [entry.message.message_id for record in claimed for entry in record.unassigned] == ["m0"]
    assert (await redis.xpending(keys.events(SHARD), GROUP))["pending"] == len(dead)
