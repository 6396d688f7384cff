"""The commands that an idle worker sends to Redis are bounded by shards, not by bots; each count is of one run of a job."""

from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace
from redis.asyncio.connection import AbstractConnection

from app.closing.policy_change import _version
from app.domain.entry import Entry
from app.domain.records import Receive
from app.domain.strand import Strand
from app.live import keys
from app.live.pipe import Argument, Pipe
from app.metrics import OPEN
from app.resources import Resources
from app.worker import Worker

BOTS = 10_000
IDLE_JOBS = ("sweep", "sweep sandboxes", "sweep for others", "change policies", "measure", "repair", "heartbeat")

SaveBot = Callable[..., Awaitable[None]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Argument]:
    """Collect the name of every command that goes out through a pipe."""
    names: list[Argument] = []
    send = Pipe._send

    def counting(pipe: Pipe, connection: AbstractConnection, commands: Sequence[tuple[Argument, ...]]) -> object:
        names.extend(command[0] for command in commands)
        return send(pipe, connection, commands)

    monkeypatch.setattr(Pipe, "_send", counting)
    return names


async def add_bots(resources: Resources, number: int) -> None:
    """Let this process know more bots of all kinds; their policies are applied."""
    (shop,) = resources.config.bots()
    made = [
        replace(shop, id=f"bot{n}", sandbox=n % 4 > 0, clock_mode="manual" if n % 4 else None, deleted=n % 2 == 0)
        for n in range(number)
    ]
    resources.config._bots.update({bot.id: bot for bot in made})
    await resources.redis.hset(keys.POLICIES_APPLIED, mapping={bot.id: _version(bot) for bot in made})
    await resources.redis.mset({keys.sandbox_clock(bot.id): resources.clock.now_ms() for bot in made if bot.sandbox})


async def test_idle_jobs_send_as_many_commands_for_10_000_bots_as_for_one(
    resources: Resources, worker: Worker, save_bot: SaveBot, sent: list[Argument]
) -> None:
    """Reading every bot in every shard took 26 % of a core in each worker. One command a shard looks at some bots in turn."""

    async def run_all() -> dict[str, int]:
        counts = {}
        for job in IDLE_JOBS:
            sent.clear()
            await worker.jobs()[job][0]()
            counts[job] = len(sent)
        return counts

    await save_bot("shop", version=1, minutes=15)
    await run_all()
    few = await run_all()
    await add_bots(resources, BOTS)
    await run_all()
    many = await run_all()

    added = {job: many[job] - few[job] for job in IDLE_JOBS}
    assert max(added.values()) <= resources.settings.shards, added


async def test_two_workers_measure_each_shard_once(resources: Resources, worker: Worker, save_bot: SaveBot) -> None:
    """Each reports its own shards, so that the sums over all workers are right; one reports what belongs to no shard."""
    await save_bot("shop", version=1, minutes=15)
    for user in range(40):
        entry = Receive(Entry(user_id=str(user), role="user", text="hello"), f"m{user}")
        await resources.ledger.submit(Strand("shop", f"web:{user}"), entry)
    other = Worker(resources)
    other.name = "other"
    other.shard_lease._worker = other.name
    await worker.shard_lease.heartbeat(resources.clock.now_ms())
    await other.shard_lease.heartbeat(resources.clock.now_ms())

    open_, owners = [], []
    for each in (worker, other):
        await each.measure()
        open_.append(OPEN._value.get())
        owners.append(each.dispatcher._maintenance.measures)
    await other.stop()

    assert sum(open_) == 40
    assert min(open_) > 0
    assert sorted(owners) == [False, True]


async def test_a_bot_without_counts_is_repaired_when_its_turn_comes(
    resources: Resources, worker: Worker, save_bot: SaveBot
) -> None:
    """Only a change from outside leaves an open session that no count names: all bots are looked at, some at each run."""
    await save_bot("shop", version=1, minutes=15)
    await add_bots(resources, 2_500)
    strand = Strand("bot2401", "web:ann")
    shard = keys.shard_of(strand, resources.settings.shards)
    await resources.redis.zadd(keys.users(shard, strand.bot), {keys.user_member("ann", strand): 0})

    repairs = [await worker.consistency.run_once(resources.config.bots_and_deleted()) for _ in range(3)]

    assert sorted(repairs) == [0, 0, 1]
