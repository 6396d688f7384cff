"""Entries at the deadline while others close: two processes sweep without pause, two ledgers take entries.

Nothing archives meanwhile, so the event streams hold everything that ever happened, a second close of a session too.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest
from prometheus_client import REGISTRY

from app.config.publish import move
from app.config.records import BotRecord, Mark
from app.domain.entry import Entry
from app.domain.instants import HOUR_MS, MINUTE_MS
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import Event, Message, Receive, Session
from app.domain.strand import strand_of
from app.errors import Unavailable
from app.ingest.intake import Receipt, receipt
from app.live import keys
from app.live.codec import EventRecord
from app.live.fold import PendingCommand
from app.live.view import messages_of
from app.resources import Resources, open_resources
from app.settings import Settings, environment_with

BOT = "racing"
ROUNDS = 20
CONVERSATIONS = 50
SILENCE_MS = 15 * MINUTE_MS
START_MS = 1_790_000_000_000
RULES = PolicyVersion(1, 0, Policy())


@pytest.fixture
async def processes(redis_url: str, database_url: str) -> AsyncIterator[list[Resources]]:
    """Two processes' worth of connections, ledger and cache, and two processes more that sweep."""
    settings = Settings(redis_url=redis_url, database_url=database_url, redis_timeout_s=5, ingest_deadline_s=20)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_resources(settings))
        await _make_bot(first)
        second = await stack.enter_async_context(open_resources(settings))
        for _ in range(2):
            await stack.enter_async_context(_sweeper(redis_url, database_url))
        yield [first, second]


async def _make_bot(resources: Resources) -> None:
    bot = BotRecord(
        id=BOT,
        name="Racing",
        sandbox=True,
        clock_mode="sent_at",
        deleted=False,
        policy_version=1,
        effective_at_ms=0,
        policy={},
        endpoints=(),
    )
    assert await move(resources.redis, stored=None, to=Mark("test", 1), bots=[bot], api_keys={}, whole=True)
    await resources.config.load()


@asynccontextmanager
async def _sweeper(redis_url: str, database_url: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.acceptance.sweeper", BOT),
        env=environment_with(redis_url=redis_url, database_url=database_url, redis_timeout_s=5),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"sweeping\n"
    try:
        yield
    finally:
        ended_early = process.returncode
        process.stdin.close()
        await process.wait()
        assert ended_early is None, "a sweeper failed"


def _submit(resources: Resources, user: str, message_id: str, *, at_ms: int) -> Awaitable[Receipt]:
    """An entry whose request read the bot's clock at `at_ms`, wherever that clock stands when it is committed."""
    entry = Entry(user_id=user, role="user", message_id=message_id, text=message_id)
    strand = strand_of(BOT, entry, RULES)
    future = resources.ledger.submit(strand, Receive(entry, message_id), at_ms=at_ms)

    async def posted() -> Receipt:
        return receipt(message_id, await future)

    return posted()


async def _round(processes: list[Resources], number: int, rng: random.Random) -> list[Receipt]:
    """Open sessions, then post to each at its deadline, 1 ms before or 1 ms after, while the clock reaches it."""
    opened_at_ms = START_MS + number * 2 * HOUR_MS
    deadline_ms = opened_at_ms + SILENCE_MS
    users = [f"user-{number}-{index}" for index in range(CONVERSATIONS)]
    opened = await asyncio.gather(*(_submit(rng.choice(processes), user, f"{user}-first", at_ms=opened_at_ms) for user in users))
    rng.shuffle(users)
    move_clock = processes[0].sandboxes.forward(BOT, to_ms=deadline_ms)
    late, _ = await asyncio.gather(_post_late(processes, users, rng, deadline_ms=deadline_ms), move_clock)
    return [*opened, *late]


async def _post_late(processes: list[Resources], users: list[str], rng: random.Random, *, deadline_ms: int) -> list[Receipt]:
    """A few under way at a time, so that commits are many and small."""
    gate = asyncio.Semaphore(4)

    async def post(user: str) -> Receipt:
        async with gate:
            return await _submit(rng.choice(processes), user, f"{user}-late", at_ms=deadline_ms + rng.choice((-1, 0, 1)))

    return await asyncio.gather(*(post(user) for user in users))


async def test_the_clock_does_not_pass_an_entry_that_redis_did_not_take(
    processes: list[Resources], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes again with its old `sent_at`: a sweep in between must not have closed the session that it continues."""
    resources, bot = processes[0], processes[0].config.bot(BOT)
    assert bot is not None
    entries = [_sent(number, f"2026-11-21T1{number}:00:00Z") for number in range(3)]
    add = resources.ledger.add

    def refuse_one(pending: PendingCommand) -> None:
        if isinstance(pending.command, Receive) and pending.command.message_id == "m1":
            pending.fail(Unavailable("not now"))
        else:
            add(pending)

    monkeypatch.setattr(resources.ledger, "add", refuse_one)
    first = await resources.intake.take(bot, entries)
    stood_ms = await resources.sandboxes.stored_ms(BOT)
    monkeypatch.undo()
    (again,) = await resources.intake.take(bot, entries[1:2])

    assert [isinstance(result, Receipt) for result in first] == [True, False, True]
    assert stood_ms is None
    assert isinstance(again, Receipt)
    assert again.received_at == "2026-11-21T11:00:00.000Z"


def _sent(number: int, at: str) -> Entry:
    return msgspec.convert({"user_id": f"u{number}", "role": "user", "message_id": f"m{number}", "sent_at": at}, Entry)


class Everything(msgspec.Struct):
    """The content of Redis after the race: every closed session that was emitted, every message with its session."""

    closes: list[Session]
    kept: list[tuple[Session, Message]]


async def _everything(resources: Resources) -> Everything:
    events: list[Event] = []
    for shard in range(resources.settings.shards):
        for _, fields in await resources.pipe.call("XRANGE", keys.events(shard), "-", "+"):
            events.extend(msgspec.msgpack.decode(fields[1], type=EventRecord).events)
    closes = [event.session for event in events if event.type == "session.closed"]
    kept = []
    for session in {session.id: session for session in closes}.values():
        name = keys.messages(keys.shard_of_session(session.id, resources.settings.shards), session.id)
        kept += [(session, message) for message in messages_of(await resources.pipe.call("HGETALL", name))]
    return Everything(closes, kept)


def _conflicts() -> float:
    return REGISTRY.get_sample_value("adjourn_commit_conflicts_total") or 0.0


async def test_entries_at_the_deadline_while_others_close(processes: list[Resources]) -> None:
    """Each of 1,000 entries is in exactly one session, no session closes twice, and no entry is later than its session's end."""
    before = _conflicts()
    rng = random.Random(20_261_121)  # noqa: S311 - the same race each time

    receipts = [receipt for number in range(ROUNDS) for receipt in await _round(processes, number, rng)]
    end_ms = START_MS + ROUNDS * 2 * HOUR_MS
    await processes[0].sandboxes.forward(BOT, to_ms=end_ms)
    await processes[0].sweep.run_bot(BOT, end_ms)
    found = await _everything(processes[0])

    assert len(receipts) == len(found.kept) == 2 * ROUNDS * CONVERSATIONS
    assert {(message.message_id, session.id, message.sequence) for session, message in found.kept} == {
        (receipt.message_id, receipt.session_id, receipt.sequence) for receipt in receipts
    }
    assert len(found.closes) == len({session.id for session in found.closes})
    assert _conflicts() > before, "no commit conflicted: this was no race"
    for session, message in found.kept:
        assert session.closed_at_ms is not None
        assert session.opened_at_ms <= message.received_at_ms < session.closed_at_ms
    assert sum(session.entries for session in found.closes) == len(found.kept)
