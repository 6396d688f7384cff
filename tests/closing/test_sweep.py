"""A sweep wakes all that is due, whatever else stands in the way."""

import asyncio

import pytest

from app.domain.entry import Entry
from app.domain.records import Receive
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live import keys
from app.live.fold import StuckConversation
from app.resources import Resources

MINUTE_MS = 60_000
THEN_MS = 1_700_000_000_000  # long ago: by now everything that was opened is overdue
USERS = 24


def shard_of(resources: Resources, strand: Strand) -> int:
    return keys.shard_of(strand, resources.settings.shards)


@pytest.fixture
async def strands(resources: Resources) -> list[Strand]:
    """Conversations with a session that is overdue, several in each shard."""
    made = [Strand("shop", f"web:user{number}") for number in range(USERS)]
    entries = [Receive(Entry(user_id=strand.conversation[4:], role="user", text="hello"), "m1") for strand in made]
    await asyncio.gather(
        *(resources.ledger.submit(strand, entry, at_ms=THEN_MS) for strand, entry in zip(made, entries, strict=True))
    )
    assert {shard_of(resources, strand) for strand in made} == set(range(resources.settings.shards))
    return made


async def spoil(resources: Resources, strand: Strand) -> None:
    """Leave something in place of its state, as after a restart."""
    await resources.redis.set(keys.state(shard_of(resources, strand), keys.member(strand)), "nothing of ours")
    resources.ledger._cache.clear()


async def test_state_that_cannot_be_read_keeps_nobody_else_open(resources: Resources, strands: list[Strand]) -> None:
    """It is raised, and postponed for a minute; its neighbours close in the same sweep."""
    await spoil(resources, strands[0])
    now_ms = resources.clock.now_ms()

    with pytest.raises(StuckConversation):
        await resources.sweep.run_once(now_ms)

    assert await resources.live.count("shop") == 1
    assert await resources.sweep.run_once(now_ms) == 0
    with pytest.raises(StuckConversation):
        await resources.sweep.run_once(now_ms + MINUTE_MS)


async def test_many_that_cannot_be_read_leave_room_for_the_others(resources: Resources, strands: list[Strand]) -> None:
    """As many as a round takes of each shard, and due before all others."""
    *spoilt, good = strands
    resources.sweep._batch = 1
    for strand in spoilt:
        await spoil(resources, strand)
        await resources.redis.zadd(keys.due(shard_of(resources, strand)), {keys.member(strand): 1})

    with pytest.raises(StuckConversation):
        await resources.sweep.run_once(resources.clock.now_ms())

    assert await resources.redis.zscore(keys.live(shard_of(resources, good), "shop"), keys.member(good)) is None


@pytest.mark.parametrize("junk", (b"junk", b"\xff", b"a\x1fb\x1fc\x1fd", b"shop\x1fof another shard\x1f"))
@pytest.mark.usefixtures("strands")
async def test_what_is_no_conversation_of_a_shard_is_removed(resources: Resources, junk: bytes) -> None:
    """It could never be woken, and would be the first in line for ever."""
    assert shard_of(resources, Strand("shop", "of another shard")) != 0
    await resources.redis.zadd(keys.due(0), {junk: 1})

    woken = await asyncio.wait_for(resources.sweep.run_once(resources.clock.now_ms()), timeout=20)

    assert woken == USERS
    assert await resources.live.count("shop") == 0
    assert await resources.redis.zcard(keys.due(0)) == 0


async def test_shard_that_cannot_be_read_leaves_the_others(resources: Resources, strands: list[Strand]) -> None:
    """A key of another type in place of what is due in one shard: all others close, and it is raised."""
    await resources.redis.delete(keys.due(0))
    await resources.redis.set(keys.due(0), "no set")
    in_shard = sum(shard_of(resources, strand) == 0 for strand in strands)

    with pytest.raises(Unavailable, match="shard 0"):
        await resources.sweep.run_once(resources.clock.now_ms())

    assert await resources.live.count("shop") == in_shard


@pytest.mark.usefixtures("strands")
async def test_shard_that_cannot_be_written_leaves_the_others(resources: Resources) -> None:
    """The same where its commits are refused: more than one round's worth of the others closes."""
    await resources.redis.delete(keys.live(0, "shop"))
    await resources.redis.set(keys.live(0, "shop"), "no set")
    resources.sweep._batch = 2

    with pytest.raises(Unavailable, match="refused"):
        await resources.sweep.run_once(resources.clock.now_ms())

    others = range(1, resources.settings.shards)
    assert [await resources.redis.zcard(keys.live(shard, "shop")) for shard in others] == [0] * len(others)


async def test_open_session_that_is_none_is_skipped(resources: Resources, strands: list[Strand]) -> None:
    """Wherever a bot's open sessions are listed."""
    await resources.redis.zadd(keys.live(0, "shop"), {b"\xff junk": 1})

    found, _ = await resources.live.page("shop", after=None, limit=100)

    assert len(found) == len(strands)
