"""The feed has every event of live sessions once, in one order over all shards, for each reader."""

import pytest

from app.domain.entry import Entry
from app.domain.records import Close, Receive
from app.domain.strand import Strand
from app.live import keys
from app.live.feed import FEED_KEPT_MS, FeedReader, PlacedEvent
from app.live.ledger import Ledger
from app.live.pipe import Pipe
from tests.live.test_view import NOON_MS, SHARDS, ledger_on


async def talk(ledger: Ledger, users: range) -> None:
    """One session a user, opened and closed."""
    for user in users:
        strand = Strand("bot", f"web:user{user}")
        outcome = await ledger.submit(strand, Receive(Entry(user_id=f"user{user}", role="user", text="hi"), "m1"), at_ms=NOON_MS)
        assert outcome.answer is not None
        await ledger.submit(strand, Close(outcome.answer.session_id or ""), at_ms=NOON_MS + 1_000)


async def read_all(reader: FeedReader, *, events: int) -> list[PlacedEvent]:
    """Read until so many events came; an event comes once Redis's clock has passed it."""
    found: list[PlacedEvent] = []
    for _ in range(1_000):
        found += await reader.read()
        if len(found) >= events:
            break
    return found


async def test_every_event_once_in_one_order(pipe: Pipe) -> None:
    """Two readers, one of which begins in the middle and reads portion by portion, agree on every position."""
    ledger = ledger_on(pipe)
    early, late = FeedReader(pipe, shards=SHARDS), FeedReader(pipe, shards=SHARDS)
    await talk(ledger, range(20))
    first = await read_all(early, events=40)
    await talk(ledger, range(20, 40))
    first += await read_all(early, events=40)

    assert await read_all(late, events=80) == first
    assert [placed.position for placed in first] == sorted({placed.position for placed in first})
    assert [placed.event.type for placed in first].count("session.opened") == 40
    assert {placed.event.user_id for placed in first if placed.event.type == "session.closed"} == {f"user{n}" for n in range(40)}
    assert {placed.position[2] for placed in first} == set(range(SHARDS))


async def test_an_event_waits_until_no_earlier_one_can_follow(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the instant of a record another shard may still get one of the same millisecond."""
    await talk(ledger_on(pipe), range(1))
    name = keys.feed(keys.shard_of(Strand("bot", "web:user0"), SHARDS))
    stored = await pipe.call("XRANGE", name, "-", "+")
    at_ms = int(stored[-1][0].split(b"-")[0])
    reader = FeedReader(pipe, shards=SHARDS)

    async def time_ms(_: FeedReader) -> int:
        return at_ms

    with monkeypatch.context() as patch:
        patch.setattr(FeedReader, "_time_ms", time_ms)
        too_early = await reader.read()
    following = await read_all(reader, events=2 - len(too_early))

    assert all(placed.position[0] < at_ms for placed in too_early)
    assert [placed.event.type for placed in (*too_early, *following)] == ["session.opened", "session.closed"]


async def test_events_are_given_at_once_after_the_clock_was_set_back(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records then lie in the future of Redis's clock: waiting for it could take hours."""
    await talk(ledger_on(pipe), range(1))
    reader = FeedReader(pipe, shards=SHARDS)
    await read_all(reader, events=2)
    await talk(ledger_on(pipe), range(1, 2))

    async def time_ms(_: FeedReader) -> int:
        return NOON_MS

    monkeypatch.setattr(FeedReader, "_time_ms", time_ms)
    assert len(await reader.read()) == 2


async def test_the_feed_is_trimmed_by_time(pipe: Pipe) -> None:
    """Records that are older than it keeps make way for new ones, node by node of a hundred."""
    name = keys.feed(keys.shard_of(Strand("bot", "web:user0"), SHARDS))
    for number in range(1, 251):
        await pipe.call("XADD", name, f"{number}-0", "e", b"x")
    await talk(ledger_on(pipe), range(1))

    now_ms = int((await pipe.call("TIME"))[0]) * 1_000
    stored = [int(entry[0].split(b"-")[0]) for entry in await pipe.call("XRANGE", name, "-", "+")]
    assert len([at_ms for at_ms in stored if at_ms < now_ms - FEED_KEPT_MS]) < 100
    assert len([at_ms for at_ms in stored if at_ms >= now_ms - FEED_KEPT_MS]) == 2
