"""Late entries reach their archived session: each once, in any order, through crashes and rollbacks of Redis."""

import asyncio
from unittest.mock import patch

import pytest
from msgspec import structs
from sqlalchemy import text

from app.archive import late_entries
from app.archive.audit import Actor
from app.archive.late_entries import UnassignedPlace
from app.closing import archivist as loop
from app.closing.archivist import Archivist
from app.closing.rejects import replay_all
from app.domain.entry import Entry, EntryType
from app.domain.records import Answer, Message, Receive, UnassignedEntry
from app.domain.strand import Strand
from app.failpoints import NAMES
from app.live import keys
from app.live.event_stream import GROUP
from app.resources import Resources
from app.worker import Worker
from tests.closing.stream import STRAND, archived, close, say, waiting

_SESSIONS = """
    SELECT s.late_entries, s.outcome, array_agg(
        m.sequence || ' ' || m.message_id || CASE WHEN m.late THEN ' late' ELSE '' END ORDER BY m.sequence)
    FROM sessions s JOIN messages m ON m.session_id = s.id GROUP BY s.opened_at, s.id, s.late_entries, s.outcome
"""
_ENDPOINT = """
    INSERT INTO endpoints (id, bot_id, url, events, secret)
    VALUES (gen_random_uuid(), 'bot', 'http://127.0.0.1/', '{session.closed,session.updated}', 'whsec_')
"""


async def signal(resources: Resources, kind: EntryType, name: str, **fields: object) -> None:
    """An entry that starts no session: where none is open, it is late."""
    entry = Entry(user_id="ann", role="bot", type=kind, message_id=name, **fields)  # type: ignore[arg-type]
    outcome = await resources.ledger.submit(STRAND, Receive(entry, name))
    assert outcome.answer is not None
    assert outcome.answer.session == "late"


async def sessions(resources: Resources) -> list[tuple[object, ...]]:
    """Of each session: late entries, outcome, transcript."""
    async with resources.engine.connect() as conn:
        return [tuple(row) for row in await conn.execute(text(_SESSIONS))]


async def deliveries(resources: Resources) -> list[str]:
    async with resources.engine.connect() as conn:
        return list(await conn.scalars(text("SELECT event FROM deliveries ORDER BY event")))


@pytest.fixture
async def _subscribed(resources: Resources) -> None:
    async with resources.engine.begin() as conn:
        await conn.execute(text("INSERT INTO bots (id, name) VALUES ('bot', 'bot')"))
        await conn.execute(text(_ENDPOINT))


async def run_until_released(resources: Resources, archivist: Archivist) -> None:
    async with asyncio.timeout(20):
        while await waiting(resources):
            await archivist.run_once()
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("_subscribed")
@pytest.mark.parametrize("archived_first", (False, True))
async def test_late_entries_are_archived_with_their_session(
    resources: Resources, worker: Worker, *, archived_first: bool
) -> None:
    """Whether the session was archived before they came or with them: messages, row and webhooks are the same."""
    await close(resources, await say(resources, "hello"))
    if archived_first:
        await worker.archivist.run_once()
    await signal(resources, "survey.sent", "l1", session_metadata={"number": 7})
    await signal(resources, "resolved", "l2")

    await worker.archivist.run_once()

    assert await sessions(resources) == [(2, "resolved", ["1 ann-hello", "2 l1 late", "3 l2 late"])]
    assert await deliveries(resources) == ["session.closed", "session.updated", "session.updated"]
    assert await waiting(resources) == 0
    async with resources.engine.connect() as conn:
        metadata = await conn.scalar(text("SELECT session_metadata FROM sessions"))
        chained = await conn.scalar(text("SELECT count(*) FROM deliveries d JOIN deliveries before ON before.id = d.after_id"))
    assert metadata == {"number": 7}
    assert chained == 2


@pytest.mark.usefixtures("_subscribed")
@pytest.mark.parametrize("nth", (1, 2))
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("archive.")])
async def test_crash_at_any_failpoint_neither_loses_nor_doubles_a_late_entry(
    resources: Resources, worker: Worker, other: Archivist, *, name: str, nth: int
) -> None:
    """With the close (the first time the worker comes by) or with the late entries (the second)."""
    await close(resources, await say(resources, "hello"))
    hits = 0

    def failpoint(reached: str) -> None:
        nonlocal hits
        hits += reached == name
        if reached == name and hits == nth:
            raise asyncio.CancelledError

    with patch.object(loop, "failpoint", failpoint):
        try:
            await worker.archivist.run_once()
            await signal(resources, "resolved", "l1")
            await worker.archivist.run_once()
        except asyncio.CancelledError:
            if nth == 1:
                await signal(resources, "resolved", "l1")
    await run_until_released(resources, other)

    assert hits >= nth
    assert await sessions(resources) == [(1, "resolved", ["1 ann-hello", "2 l1 late"])]
    assert await deliveries(resources) == ["session.closed", "session.updated"]
    assert (await worker.consistency.totals()).unaccounted == 0


async def test_late_entry_waits_for_its_session(resources: Resources, worker: Worker, other: Archivist) -> None:
    """Another worker still has the record that closed the session: the late entry is not released, and not rejected."""
    await close(resources, await say(resources, "hello"))
    await worker.archivist._streams._make_groups()
    shard = keys.shard_of(STRAND, resources.settings.shards)
    await resources.redis.xreadgroup(GROUP, "slow", {keys.events(shard): ">"})
    await signal(resources, "resolved", "l1")
    await worker.archivist.run_once()
    held = await waiting(resources), await sessions(resources)

    await run_until_released(resources, other)
    await worker.archivist.run_once()

    assert held == (3, [])
    assert await sessions(resources) == [(1, "resolved", ["1 ann-hello", "2 l1 late"])]


async def test_late_entry_of_a_rejected_session_is_rejected_and_replayed_with_it(resources: Resources, worker: Worker) -> None:
    """Else it would wait for ever; replayed in their order, both are archived."""
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions ADD CONSTRAINT nothing CHECK (user_id <> 'ann')"))
    await close(resources, await say(resources, "hello"))
    await worker.archivist.run_once()
    await signal(resources, "resolved", "l1")
    await worker.archivist.run_once()
    async with resources.engine.begin() as conn:
        errors = list(await conn.scalars(text("SELECT error FROM rejects ORDER BY id")))
        await conn.execute(text("ALTER TABLE sessions DROP CONSTRAINT nothing"))

    await replay_all(resources.engine, resources.pipe, bots=None, actor=Actor("ops"))
    await run_until_released(resources, worker.archivist)

    assert len(errors) == 2
    assert errors[1] == "its session was rejected"
    assert await sessions(resources) == [(1, "resolved", ["1 ann-hello", "2 l1 late"])]


async def test_late_entries_after_a_rollback_are_neither_lost_nor_made_a_session(resources: Resources, worker: Worker) -> None:
    """Redis came back without the late entry that Postgres holds, and gave its number to another."""
    session = await say(resources, "hello")
    await close(resources, session)
    redis, shard = resources.redis, keys.shard_of(STRAND, resources.settings.shards)
    names = [keys.state(shard, keys.member(STRAND)), keys.messages(shard, session)]
    before = [await redis.dump(name) for name in names]
    await signal(resources, "resolved", "l1")
    await worker.archivist.run_once()
    for name, value in zip(names, before, strict=True):
        await redis.restore(name, 0, value or b"", replace=True)
    resources.ledger._cache.clear()

    await signal(resources, "survey.sent", "l2")
    await worker.archivist.run_once()

    assert await sessions(resources) == [(2, "resolved", ["1 ann-hello", "2 l1 late", "3 l2 late"])]


async def test_late_message_without_its_event_is_not_archived(resources: Resources, worker: Worker) -> None:
    """Redis lost the event after a worker had read the transcript: the message would be in the archive, and no webhook sent."""
    await close(resources, await say(resources, "hello"))
    await signal(resources, "resolved", "l1")
    stream = keys.events(keys.shard_of(STRAND, resources.settings.shards))
    records = await worker.archivist._streams.take()
    await resources.redis.xdel(stream, records[-1].id)
    worker.archivist._streams.retry()

    await worker.archivist.run_once()

    assert await sessions(resources) == [(0, "completed", ["1 ann-hello"])]


async def test_a_late_entry_of_a_session_that_closed_again_after_a_rollback(resources: Resources, worker: Worker) -> None:
    """Redis came back with the session open and shorter: the number of its late entry belongs to a message in the archive."""
    session = await say(resources, "one")
    redis, shard = resources.redis, keys.shard_of(STRAND, resources.settings.shards)
    names = [keys.state(shard, keys.member(STRAND)), keys.messages(shard, session)]
    before = [await redis.dump(name) for name in names]
    await say(resources, "two")
    await close(resources, session)
    await worker.archivist.run_once()
    for name, value in zip(names, before, strict=True):
        await redis.restore(name, 0, value or b"", replace=True)
    resources.ledger._cache.clear()

    await close(resources, session)
    await signal(resources, "survey.sent", "l1")
    await worker.archivist.run_once()

    ((late, _, messages),) = await sessions(resources)
    assert (late, messages) == (1, ["1 ann-one", "2 ann-two", "3 l1 late"])


async def test_late_entries_are_archived_in_any_order(resources: Resources, worker: Worker) -> None:
    """Two workers have one each: the later one is archived first."""
    await close(resources, await say(resources, "hello"))
    await worker.archivist.run_once()
    await signal(resources, "resolved", "l1")
    await signal(resources, "escalated", "l2")
    shard = keys.shard_of(STRAND, resources.settings.shards)
    first = (await worker.archivist._streams.take())[0]
    await resources.redis.xdel(keys.events(shard), first.id)
    worker.archivist._streams.retry()
    await worker.archivist.run_once()
    between = await sessions(resources)
    await resources.redis.xadd(keys.events(shard), {"e": first.raw})
    await worker.archivist.run_once()

    assert between == [(2, "escalated", ["1 ann-hello", "3 l2 late"])]
    assert await sessions(resources) == [(2, "escalated", ["1 ann-hello", "2 l1 late", "3 l2 late"])]


async def test_entries_without_a_session_are_kept_once_and_the_latest_of_a_bot(resources: Resources, worker: Worker) -> None:
    """Repeated after a crash they are there once; of more than the limit the oldest go."""
    strand = Strand("bot", "web:eve")
    entry = Entry(user_id="eve", role="bot", type="resolved", message_id="r1", text="a\x00b")
    await resources.ledger.submit(strand, Receive(entry, "r1"))
    (record,) = await worker.archivist._streams.take()
    shard = keys.shard_of(strand, resources.settings.shards)
    await resources.redis.xadd(keys.events(shard), {"e": record.raw})
    worker.archivist._streams.retry()

    await worker.archivist.run_once()
    async with resources.engine.begin() as conn:
        page = await late_entries.unassigned_page(conn, "bot", after=None, limit=10)
        older = Message(0, "r", 0, "bot", "resolved", None, Answer(None, "none", 0, None, 0))
        many = [structs.replace(older, message_id=f"r{at}", received_at_ms=at) for at in range(late_entries.KEPT_UNASSIGNED + 5)]
        await late_entries.add_unassigned(conn, [(strand, UnassignedEntry("no_session", message)) for message in many])
        pages = [await late_entries.unassigned_page(conn, "bot", after=None, limit=2_000)]
        pages.append(await late_entries.unassigned_page(conn, "bot", after=UnassignedPlace(1_000, pages[0][5].id), limit=3))

    assert [(row.reason, row.message_id, row.entry["text"]) for row in page] == [("no_session", "r1", "a\ufffdb")]
    assert [row.message_id for row in pages[0][:3]] == ["r1", "r1004", "r1003"]
    assert len(pages[0]) == late_entries.KEPT_UNASSIGNED
    assert [row.message_id for row in pages[1]] == ["r999", "r998", "r997"]
    assert await archived(resources) == {}
    assert await waiting(resources) == 0
