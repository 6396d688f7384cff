"""Sandbox bots are swept one after the other, and a failure of one stops no other."""

from collections.abc import Awaitable, Callable

import pytest

from app.domain.entry import Entry
from app.domain.records import Receive
from app.domain.strand import Strand
from app.live import keys
from app.live.fold import StuckConversation
from app.resources import Resources
from app.worker import Worker

HOUR_MS = 3_600_000
BOTS = ("a", "b", "c")

SaveBot = Callable[..., Awaitable[None]]


@pytest.fixture
async def overdue(resources: Resources, save_bot: SaveBot) -> None:
    """A session of each bot, overdue by its clock."""
    now_ms = resources.clock.now_ms()
    for bot in BOTS:
        await save_bot(bot, version=1, minutes=15, sandbox=True)
        entry = Entry(user_id="ann", role="user", text="hello")
        await resources.ledger.submit(Strand(bot, "web:ann"), Receive(entry, "m1"), at_ms=now_ms)
        await resources.sandboxes.forward(bot, to_ms=now_ms + HOUR_MS)


async def spoil_state(resources: Resources, bot: str) -> None:
    strand = Strand(bot, "web:ann")
    await resources.redis.set(
        keys.state(keys.shard_of(strand, resources.settings.shards), keys.member(strand)), "nothing of ours"
    )
    resources.ledger._cache.clear()


async def spoil_clock(resources: Resources, bot: str) -> None:
    await resources.redis.set(keys.sandbox_clock(bot), "no instant")


@pytest.mark.parametrize(("spoil", "error"), ((spoil_state, StuckConversation), (spoil_clock, ValueError)))
@pytest.mark.parametrize("job", ("sweep sandboxes", "sweep for others"))
@pytest.mark.usefixtures("overdue")
async def test_trouble_with_one_sandbox_keeps_no_other_open(
    resources: Resources, worker: Worker, *, job: str, spoil: Callable[[Resources, str], Awaitable[None]], error: type[Exception]
) -> None:
    """Its error is raised when all have been swept."""
    await spoil(resources, "a")

    with pytest.raises(error):
        await worker.jobs()[job][0]()

    assert [await resources.live.count(bot) for bot in BOTS] == [1, 0, 0]


@pytest.mark.usefixtures("overdue")
async def test_trouble_with_all_else_keeps_no_sandbox_open(resources: Resources, worker: Worker) -> None:
    """A sweep for others that cannot read what is due in a shard goes on with the sandboxes."""
    await resources.redis.set(keys.due(0), "no set")

    with pytest.raises(Exception, match="shard 0"):
        await worker.sweep_for_others()

    assert [await resources.live.count(bot) for bot in BOTS] == [0, 0, 0]
