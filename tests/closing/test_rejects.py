"""Records that cannot be archived: bad data alone is rejected, never much of it, and an admin can have it archived again."""

import asyncio
from unittest.mock import patch

import pytest
from sqlalchemy import text

from app.archive.audit import Actor
from app.closing.rejects import RejectLimit, RejectLimitReached, Replayed, readable, replay_all, restore
from app.domain.strand import Strand
from app.live import keys
from app.resources import Resources
from app.worker import Worker
from tests.closing.stream import STRAND, archived, close, say, waiting

ADMIN = Actor("ops")


async def test_record_that_postgres_refuses_is_rejected_alone(resources: Resources, worker: Worker) -> None:
    """Its neighbours are archived, and an admin can see it."""
    good = await say(resources, "hello")
    bad_strand = Strand("bot", "web:eve")
    bad = await say(resources, "poison", strand=bad_strand)
    await close(resources, good)
    await close(resources, bad, strand=bad_strand)
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions ADD CONSTRAINT no_eve CHECK (user_id <> 'eve')"))

    await worker.archivist.run_once()

    assert await archived(resources) == {good: ["hello"]}
    assert await waiting(resources) == 0
    async with resources.engine.connect() as conn:
        rejects = (await conn.execute(text("SELECT session_id::text, error FROM rejects"))).all()
    assert [row.session_id for row in rejects] == [bad]
    assert "no_eve" in rejects[0].error


async def test_rejected_record_can_be_replayed(resources: Resources, worker: Worker) -> None:
    """When what it failed on is mended it is archived with all its messages, even if Redis has forgotten them meanwhile."""
    session = await say(resources, "hello", "again")
    await close(resources, session)
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions ADD CONSTRAINT no_ann CHECK (user_id <> 'ann')"))
    await worker.archivist.run_once()
    assert await archived(resources) == {}
    await resources.redis.delete(keys.messages(keys.shard_of(STRAND, resources.settings.shards), session))

    await replay_all(resources.engine, resources.pipe, bots=None, actor=ADMIN)
    await worker.archivist.run_once()
    assert await archived(resources) == {}
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions DROP CONSTRAINT no_ann"))
    await replay_all(resources.engine, resources.pipe, bots=None, actor=ADMIN)
    await worker.archivist.run_once()

    assert await archived(resources) == {session: ["hello", "again"]}
    assert await waiting(resources) == 0
    assert (await worker.consistency.totals()).unaccounted == 0


async def test_record_that_cannot_be_read_is_rejected_alone(resources: Resources, worker: Worker) -> None:
    """As it stood there: a newer version may be able to read it."""
    session = await say(resources, "hello")
    await close(resources, session)
    shard = keys.shard_of(STRAND, resources.settings.shards)
    for raw in (b"\xc1", b"\x93\xa1b\xff\x01"):
        await resources.redis.xadd(keys.events(shard), {"e": raw})

    await worker.archivist.run_once()

    assert await archived(resources) == {session: ["hello"]}
    assert await waiting(resources) == 0
    async with resources.engine.connect() as conn:
        kept = (await conn.execute(text("SELECT bot_id, session_id, payload FROM rejects ORDER BY id"))).all()
    assert [(row.bot_id, row.session_id, readable(row.payload).record) for row in kept] == [
        (None, None, "wQ=="),
        (None, None, ["b", -1, 1]),
    ]


async def test_transcript_that_cannot_be_read_is_rejected_alone(resources: Resources, worker: Worker) -> None:
    """With what can be read of it, and its neighbours are archived."""
    good, bad_strand = await say(resources, "hello"), Strand("bot", "web:eve")
    bad = await say(resources, "one", "two", strand=bad_strand)
    await close(resources, good)
    await close(resources, bad, strand=bad_strand)
    name = keys.messages(keys.shard_of(bad_strand, resources.settings.shards), bad)
    whole = await resources.redis.hget(name, "eve-two")
    await resources.redis.hset(name, "eve-two", b"\xc1")

    await worker.archivist.run_once()
    assert await archived(resources) == {good: ["hello"]}
    async with resources.engine.connect() as conn:
        (kept,) = (await conn.execute(text("SELECT session_id::text, payload FROM rejects"))).all()
    assert kept.session_id == bad
    assert "wQ==" in readable(kept.payload).transcripts[bad]

    await restore(resources.pipe, kept.payload)
    await resources.redis.hset(name, "eve-two", whole)
    await worker.archivist.run_once()
    assert await archived(resources) == {good: ["hello"], bad: ["one", "two"]}


async def close_many(resources: Resources, number: int, *, name: str = "user") -> list[str]:
    """Sessions of as many users, each closed."""
    closed = []
    for at in range(number):
        strand = Strand("bot", f"web:{name}{at}")
        closed.append(await say(resources, "hello", strand=strand))
        await close(resources, closed[-1], strand=strand)
    return closed


async def rejected(resources: Resources) -> int:
    async with resources.engine.connect() as conn:
        return int(await conn.scalar(text("SELECT count(*) FROM rejects")) or 0)


async def run_until_it_archives(worker: Worker) -> None:
    async with asyncio.timeout(20):
        while not await worker.archivist.run_once():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("place", ("app.archive.sessions.session_row", "app.closing.archive_batch._new_events"))
async def test_fault_of_the_product_rejects_nothing(resources: Resources, worker: Worker, place: str) -> None:
    """A `ValueError` of our own code says nothing of the data: all records stay in the stream until it is mended."""
    closed = await close_many(resources, 3)
    with patch(place, side_effect=ValueError("a fault of ours")), pytest.raises(ValueError, match="a fault of ours"):
        await worker.archivist.run_once()

    assert await rejected(resources) == 0
    assert await waiting(resources) == 6

    await run_until_it_archives(worker)
    assert await archived(resources) == {session: ["hello"] for session in closed}


async def test_archivist_stops_above_the_limit_and_goes_on_when_the_cause_is_mended(resources: Resources, worker: Worker) -> None:
    """Everything is refused: ten records are rejected, the others stay, `/readyz` can say why, and nothing is lost."""
    closed = await close_many(resources, 14)
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions ADD CONSTRAINT nothing CHECK (user_id = '')"))
    with pytest.raises(RejectLimitReached):
        await worker.archivist.run_once()
    late = await close_many(resources, 1, name="late")
    with pytest.raises(RejectLimitReached):
        await run_until_it_archives(worker)

    assert await rejected(resources) == 10
    assert b"nothing" in (await resources.redis.get(keys.ARCHIVE_STOPPED) or b"")
    consumers = [await resources.redis.xinfo_consumers(keys.events(shard), "archive") for shard in range(4)]
    # The stream still holds four sessions that were tried, and one, opened and closed since, that was not even taken.
    assert await waiting(resources) - sum(each["pending"] for of in consumers for each in of) == 2

    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions DROP CONSTRAINT nothing"))
    await run_until_it_archives(worker)
    stopped = await resources.redis.exists(keys.ARCHIVE_STOPPED)
    replayed = await replay_all(resources.engine, resources.pipe, bots=None, actor=ADMIN)
    await run_until_it_archives(worker)
    assert stopped == 0
    assert replayed == Replayed(10, 0)
    assert await archived(resources) == {session: ["hello"] for session in [*closed, *late]}
    assert await waiting(resources) == 0


@pytest.mark.parametrize(
    ("percent", "records", "allowed"), ((0, 1_000, 0), (5, 0, 10), (5, 1_000, 50), (5, 100_000, 50), (100, 0, 2_000))
)
def test_limit_allows_a_share_of_the_last_thousand_records_and_always_a_few(percent: int, records: int, allowed: int) -> None:
    """With 0 none, with 100 any number; in between a share, which what was long ago does not raise."""
    limit, error = RejectLimit(percent=percent), ValueError("bad")
    limit.count(records, rejected=False)
    rejects = 0
    try:
        while rejects < allowed + 1 and rejects < 2_000:
            limit.check(error)
            limit.count(1, rejected=True)
            rejects += 1
    except RejectLimitReached:
        pass

    assert rejects == allowed


async def test_all_rejects_of_some_bots_are_replayed_at_once(resources: Resources, worker: Worker) -> None:
    """Each once and in their order; those of other bots and those that another version kept stay, and the audit log says so."""
    mine = [await say(resources, "hello", strand=Strand("bot", f"web:user{at}")) for at in range(2)]
    for at, session in enumerate(mine):
        await close(resources, session, strand=Strand("bot", f"web:user{at}"))
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions ADD CONSTRAINT nothing CHECK (user_id = '')"))
    await worker.archivist.run_once()
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions DROP CONSTRAINT nothing"))
        await conn.execute(
            text("INSERT INTO rejects (bot_id, error, payload) VALUES ('bot', '', '\\x81'), ('other', '', '\\x81')")
        )

    replayed = await replay_all(resources.engine, resources.pipe, bots=frozenset({"bot"}), actor=ADMIN)
    await worker.archivist.run_once()

    assert replayed == Replayed(2, 1)
    assert await archived(resources) == {session: ["hello"] for session in mine}
    assert await rejected(resources) == 2
    async with resources.engine.connect() as conn:
        audited = (await conn.execute(text("SELECT actor, action, bot_id FROM audit_log"))).all()
    assert [tuple(row) for row in audited] == [("ops", "reject.replayed", "bot")] * 2
