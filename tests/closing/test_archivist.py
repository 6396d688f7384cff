"""From the stream to Postgres: every step repeated changes nothing, every crash loses nothing."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from unittest.mock import patch

import asyncpg
import pytest
from msgspec.structs import replace
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import sessions
from app.closing.archivist import Archivist, Backlog
from app.domain.entry import Entry
from app.domain.records import Message, Receive, Session
from app.domain.strand import Strand
from app.live import keys
from app.live.event_stream import GROUP, EventStream, StreamRecord
from app.resources import Resources
from app.worker import Worker
from tests.closing.stream import STRAND, archived, close, say, waiting


async def test_closed_session_is_archived_with_its_messages_and_released(resources: Resources, worker: Worker) -> None:
    """Once Postgres holds it, Redis keeps no event of it, and its transcript only for repeats."""
    session = await say(resources, "hello", "again")
    await close(resources, session)

    await worker.archivist.run_once()

    assert await archived(resources) == {session: ["hello", "again"]}
    assert await waiting(resources) == 0
    shard = keys.shard_of(STRAND, resources.settings.shards)
    assert 0 < await resources.redis.pttl(keys.messages(shard, session)) <= 15 * 60_000


async def test_crash_before_the_release_repeats_and_doubles_nothing(
    resources: Resources, worker: Worker, other: Archivist
) -> None:
    """The transaction is committed and the worker dead: another one archives it again, which inserts nothing."""
    session = await say(resources, "hello")
    await close(resources, session)
    with patch.object(EventStream, "release", side_effect=asyncio.CancelledError), pytest.raises(asyncio.CancelledError):
        await worker.archivist.run_once()
    assert await waiting(resources) == 2  # the opening, and the close

    await other.run_once()

    assert await archived(resources) == {session: ["hello"]}
    assert await waiting(resources) == 0


async def test_crash_before_the_transaction_loses_nothing(resources: Resources, worker: Worker, other: Archivist) -> None:
    """Read and never written: the record is pending with the dead worker, and another one takes it over."""
    session = await say(resources, "hello")
    await close(resources, session)
    with patch.object(Archivist, "_write", side_effect=asyncio.CancelledError), pytest.raises(asyncio.CancelledError):
        await worker.archivist.run_once()
    assert await archived(resources) == {}

    await other.run_once()

    assert await archived(resources) == {session: ["hello"]}


async def test_two_archivists_at_once_archive_each_session_once(resources: Resources, worker: Worker, other: Archivist) -> None:
    """Also where one takes over what the other is still writing."""
    sessions = {}
    for number in range(40):
        strand = Strand("bot", f"web:user{number}")
        session = await say(resources, "hello", strand=strand)
        await close(resources, session, strand=strand)
        sessions[session] = ["hello"]

    await asyncio.gather(worker.archivist.run_once(), other.run_once(), other.run_once())

    assert await archived(resources) == sessions
    assert await waiting(resources) == 0


@pytest.fixture
def in_small_batches(resources: Resources, worker: Worker) -> Archivist:
    """An archivist that has ten records of each shard in a batch."""
    streams = EventStream(pipe=resources.pipe, shards=4, consumer="small", batch=40, claim_idle_ms=60_000)
    worker.archivist._streams = streams
    return worker.archivist


async def backlog(resources: Resources) -> tuple[int, str]:
    """400 records of one bot in front of two of another; gives the number of sessions, and the last bot's one."""
    strands = [Strand("busy", f"web:user{number}") for number in range(200)]
    for strand, session in zip(
        strands, await asyncio.gather(*(say(resources, "hi", strand=each) for each in strands)), strict=True
    ):
        await close(resources, session, strand=strand)
    quiet = Strand("quiet", "web:ann")
    session = await say(resources, "hello", strand=quiet)
    await close(resources, session, strand=quiet)
    return len(strands) + 1, session


async def test_a_bot_with_few_closed_sessions_waits_for_no_backlog(resources: Resources, in_small_batches: Archivist) -> None:
    """It is next after the batches under way, is archived once, and nothing of the backlog is lost."""
    count, _ = await backlog(resources)
    released: list[str] = []
    release = EventStream.release

    async def noted(streams: EventStream, batch: Sequence[StreamRecord]) -> None:
        released.extend(record.strand.bot for record in batch)
        await release(streams, batch)

    with patch.object(EventStream, "release", noted):
        await in_small_batches.run_once()

    assert (len(released), released.count("quiet")) == (2 * count, 2)
    assert released.index("quiet") < count  # of twice as many
    assert len(await archived(resources)) == count
    assert await waiting(resources) == 0


@pytest.mark.parametrize(
    ("bots", "ms", "largest", "most"),
    (
        ({"one": 500}, 0, {"one"}, 500),  # alone
        ({"one": 20, "two": 5}, 0, set(), 25),  # few of each
        ({"one": 480, "two": 20}, 0, {"one"}, 250),
        ({"one": 480, "two": 20}, 200, {"one"}, 100),  # of 2 ms each
        ({"one": 480, "two": 20}, 2_000, {"one"}, 25),
        ({"one": 240, "two": 240, "three": 20}, 0, {"one", "two"}, 250),
    ),
)
def test_transactions_are_short_while_bots_with_few_wait(bots: dict[str, int], ms: float, largest: set[str], most: int) -> None:
    """Of all records, with the last 100 having taken `ms`, so many go into the next transaction."""
    backlog = Backlog()
    records = [StreamRecord(0, b"", b"", Strand(bot, "web:ann")) for bot, number in bots.items() for _ in range(number)]

    backlog.count(records, [0] * len(records))
    backlog.note_duration(ms, records=100)

    assert (set(backlog.largest()), backlog.most_at_once(len(records))) == (largest, most)


async def test_records_that_overtook_are_taken_over_like_any_other(
    resources: Resources, in_small_batches: Archivist, other: Archivist
) -> None:
    """The worker dies with them in its hands: another one archives them."""
    count, session = await backlog(resources)
    overtake = EventStream.overtake
    taken: list[StreamRecord] = []

    async def dying(streams: EventStream, bots: frozenset[str]) -> list[StreamRecord]:
        taken.extend(await overtake(streams, bots))
        raise asyncio.CancelledError

    with patch.object(EventStream, "overtake", dying), pytest.raises(asyncio.CancelledError):
        await in_small_batches.run_once()
    assert {record.strand.bot for record in taken} == {"quiet"}
    await other.run_once()

    found = await archived(resources)
    assert (len(found), found[session]) == (count, ["hello"])
    assert await waiting(resources) == 0


async def test_messages_after_a_rollback_become_a_continuation(resources: Resources, worker: Worker) -> None:
    """Redis came back without the close that Postgres holds, and the session went on: nothing of it is dropped."""
    session = await say(resources, "hello")
    redis, shard = resources.redis, keys.shard_of(STRAND, resources.settings.shards)
    names = [keys.state(shard, keys.member(STRAND)), keys.messages(shard, session)]
    before = [await redis.dump(name) for name in names]
    await close(resources, session)
    await worker.archivist.run_once()
    for name, value in zip(names, before, strict=True):
        await redis.restore(name, 0, value or b"", replace=True)

    assert await say(resources, "more", "and more") == session
    await close(resources, session)
    await worker.archivist.run_once()

    found = await archived(resources)
    assert found.pop(session) == ["hello"]
    assert list(found.values()) == [["more", "and more"]]
    async with resources.engine.connect() as conn:
        query = "SELECT continuation_of::text, user_entries, opening_rule FROM sessions WHERE continuation_of IS NOT NULL"
        rows = (await conn.execute(text(query))).all()
    assert [tuple(row) for row in rows] == [(session, 2, "rollback")]


async def test_a_second_rollback_makes_a_second_continuation(resources: Resources, worker: Worker) -> None:
    """Messages of the first continuation are not offered again in its place, and what came since is not dropped."""
    session = await say(resources, "hello")
    redis, shard = resources.redis, keys.shard_of(STRAND, resources.settings.shards)
    names = [keys.state(shard, keys.member(STRAND)), keys.messages(shard, session)]
    for new in ("more", "still more"):
        before = [await redis.dump(name) for name in names]
        await close(resources, session)
        await worker.archivist.run_once()
        for name, value in zip(names, before, strict=True):
            await redis.restore(name, 0, value or b"", replace=True)
        assert await say(resources, new) == session
    await close(resources, session)
    await worker.archivist.run_once()

    found = await archived(resources)
    assert found.pop(session) == ["hello"]
    assert sorted(found.values()) == [["more"], ["still more"]]


async def test_records_wait_while_postgres_is_unreachable(resources: Resources, worker: Worker) -> None:
    """They stay in the stream, and are tried again without waiting for the time after which others may claim them."""
    session = await say(resources, "hello")
    await close(resources, session)
    unreachable = asyncpg.CannotConnectNowError("the database system is starting up")
    with patch("app.archive.sessions.insert_closed", side_effect=unreachable), pytest.raises(asyncpg.CannotConnectNowError):
        await worker.archivist.run_once()
    assert await waiting(resources) == 2  # the opening, and the close

    async with asyncio.timeout(20):
        while not await worker.archivist.run_once():
            await asyncio.sleep(0.01)

    assert await archived(resources) == {session: ["hello"]}


async def test_archivist_rests_while_postgres_is_unreachable(resources: Resources, worker: Worker) -> None:
    """It tries less and less often, and without a rest after a success."""
    await close(resources, await say(resources, "hello"))
    unreachable, tries = asyncpg.CannotConnectNowError("the database system is starting up"), 0

    async def write(*_: object) -> set[str]:
        nonlocal tries
        tries += 1
        raise unreachable

    with patch.object(Archivist, "_write", write):
        async with asyncio.timeout(20):
            while tries < 4:
                with suppress(asyncpg.CannotConnectNowError):
                    await worker.archivist.run_once()
                await asyncio.sleep(0.01)
        rest_ms = worker.archivist._rest_ms
        assert await worker.archivist.run_once() == 0
        assert tries == 4
    async with asyncio.timeout(20):
        while not await worker.archivist.run_once():
            await asyncio.sleep(0.01)

    assert rest_ms == 800
    assert worker.archivist._rest_ms == 0


@pytest.fixture
def short_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of a few messages is a long one, and comes in many portions."""
    monkeypatch.setattr("app.closing.transcripts._PART_BYTES", 2_000)
    monkeypatch.setattr("app.live.view._PORTION_BYTES", 1)


async def say_much(resources: Resources, name: str, number: int) -> str:
    strand = Strand("bot", f"web:{name}")
    session = await say(resources, *(f"{name} {at} {'x' * 100}" for at in range(number)), strand=strand)
    await close(resources, session, strand=strand)
    return session


@pytest.mark.usefixtures("short_measure")
async def test_long_session_goes_alone_and_last(resources: Resources, worker: Worker) -> None:
    """One that is too long to be written at all holds up only itself."""
    ids = {name: await say_much(resources, name, 300 if name == "long" else 2) for name in ("long", "ann", "ben")}
    with patch("app.archive.sessions.add_messages", side_effect=TimeoutError), pytest.raises(TimeoutError):
        await worker.archivist.run_once()
    early = await archived(resources)
    async with asyncio.timeout(20):
        while not await worker.archivist.run_once():
            await asyncio.sleep(0.01)

    assert early.keys() == {ids["ann"], ids["ben"]}
    assert (await archived(resources))[ids["long"]] == [f"long {number} {'x' * 100}" for number in range(300)]
    assert await waiting(resources) == 0


@pytest.mark.usefixtures("short_measure")
async def test_long_session_is_archived_once_and_its_surplus_continues(
    resources: Resources, worker: Worker, other: Archivist
) -> None:
    """As a short one: a crash before the release doubles nothing, and what a rollback left behind is kept."""
    redis, strand = resources.redis, Strand("bot", "web:long")
    texts = [f"long {number} {'x' * 100}" for number in range(30)]
    session = await say(resources, *texts, strand=strand)
    shard = keys.shard_of(strand, resources.settings.shards)
    names = [keys.state(shard, keys.member(strand)), keys.messages(shard, session)]
    before = [await redis.dump(name) for name in names]
    await close(resources, session, strand=strand)
    with patch.object(EventStream, "release", side_effect=asyncio.CancelledError), pytest.raises(asyncio.CancelledError):
        await worker.archivist.run_once()
    await other.run_once()
    assert await archived(resources) == {session: texts}

    for name, value in zip(names, before, strict=True):
        await redis.restore(name, 0, value or b"", replace=True)
    assert await say(resources, "more", "and more", strand=strand) == session
    await close(resources, session, strand=strand)
    await worker.archivist.run_once()

    found = await archived(resources)
    assert found.pop(session) == texts
    assert list(found.values()) == [["more", "and more"]]


async def test_session_of_many_megabytes_is_archived_in_portions(resources: Resources, worker: Worker) -> None:
    """However few its messages are: what is read and written at once is bounded by bytes. Its quota is lifted."""
    resources.config._defaults = replace(resources.config._defaults, session_max_bytes=0)
    strand = Strand("bot", "web:fat")
    for number in range(40):
        entry = Entry(user_id="fat", role="user", message_id=f"m{number}", text="hi", metadata={"blob": "x" * 900_000})
        await resources.ledger.submit(strand, Receive(entry, f"m{number}"))
    session = await say(resources, "last", strand=strand)
    await close(resources, session, strand=strand)
    portions: list[int] = []
    add = sessions.add_messages

    async def watched(conn: AsyncConnection, of: Session, portion: Sequence[Message]) -> None:
        portions.append(len(portion))
        await add(conn, of, portion)

    with patch("app.archive.sessions.add_messages", watched):
        await worker.archivist.run_once()

    assert await archived(resources) == {session: [*["hi"] * 40, "last"]}
    assert sum(portions) == 41
    assert max(portions) <= 16


async def test_broken_shard_does_not_stop_the_others(resources: Resources, worker: Worker) -> None:
    """Something else has the name of its stream, or of a transcript."""
    session = await say(resources, "hello")
    broken = (keys.shard_of(STRAND, resources.settings.shards) + 1) % resources.settings.shards
    await resources.redis.set(keys.events(broken), "not a stream")
    strand = next(
        each
        for each in (Strand("bot", f"web:user{number}") for number in range(100))
        if keys.shard_of(each, resources.settings.shards) != broken
    )
    lost = await say(resources, "lost", strand=strand)
    await close(resources, session)
    await close(resources, lost, strand=strand)
    await resources.redis.set(keys.messages(keys.shard_of(strand, resources.settings.shards), lost), "not a transcript")

    await worker.archivist.run_once()

    assert await archived(resources) == {session: ["hello"]}
    async with resources.engine.connect() as conn:
        (kept,) = (await conn.execute(text("SELECT session_id::text, error FROM rejects"))).all()
    assert kept.session_id == lost
    assert "WRONGTYPE" in kept.error


async def test_what_a_dead_worker_left_is_taken_while_more_keeps_coming(resources: Resources, worker: Worker) -> None:
    """A run that never ends, since there is always something new, looks for what was left all the same."""
    left = await say(resources, "left")
    await close(resources, left)
    await worker.archivist._streams._make_groups()
    for shard in range(resources.settings.shards):
        await resources.redis.xreadgroup(GROUP, "dead", {keys.events(shard): ">"})
    coming = 0
    read = EventStream._read

    async def another_first(self: EventStream) -> list[StreamRecord]:
        nonlocal coming
        coming += 1
        strand = Strand("bot", f"web:user{coming}")
        await close(resources, await say(resources, "new", strand=strand), strand=strand)
        return await read(self)

    with patch.object(EventStream, "_read", another_first):
        running = asyncio.create_task(worker.archivist.run_once())
        async with asyncio.timeout(20):
            while left not in await archived(resources):
                await asyncio.sleep(0.02)
        assert not running.done()
        worker.archivist.stop()
        async with asyncio.timeout(20):
            await running
