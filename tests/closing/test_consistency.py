"""The consistency check repairs the live state where it was changed from outside, and counts what is lost."""

from collections.abc import Awaitable, Callable

import pytest

from app.closing.consistency import ConsistencyCheck
from app.domain.entry import Entry
from app.domain.records import Close, Receive
from app.domain.strand import Strand
from app.live import keys
from app.live.event_stream import GROUP
from app.live.pipe import Argument, Pipe, RedisReply
from app.live.users import repair_users
from app.resources import Resources
from app.worker import Worker

ANN = Strand("shop", "web:ann")

SaveBot = Callable[..., Awaitable[None]]


@pytest.fixture
async def session(resources: Resources, save_bot: SaveBot) -> str:
    await save_bot("shop", version=1, minutes=15)
    outcome = await resources.ledger.submit(ANN, Receive(Entry(user_id="ann", role="user", text="hello"), "m1"))
    assert outcome.answer is not None
    return outcome.answer.session_id or ""


def shard(resources: Resources) -> int:
    return keys.shard_of(ANN, resources.settings.shards)


@pytest.mark.usefixtures("session")
async def test_nothing_to_repair_where_nothing_is_broken(resources: Resources, worker: Worker) -> None:
    """The check itself changes nothing."""
    assert await worker.consistency.run_once(resources.config.bots_and_deleted()) == 0


@pytest.mark.usefixtures("session")
async def test_open_session_without_a_deadline_gets_one(resources: Resources, worker: Worker) -> None:
    """Removed from `due` from outside: without a repair it would be open for ever."""
    due, member = keys.due(shard(resources)), keys.member(ANN)
    before = await resources.redis.zscore(due, member)
    await resources.redis.zrem(due, member)

    repairs = await worker.consistency.run_once(resources.config.bots_and_deleted())

    assert repairs == 1
    assert await resources.redis.zscore(due, member) == before


class Interrupted(Pipe):
    """A pipe on which other processes act between commands: one action after each, from the first scan of `name` on."""

    def __init__(self, pipe: Pipe, name: str, *actions: Callable[[], Awaitable[object]]) -> None:
        self._pipe = pipe
        self._scan = "ZSCAN", name
        self._actions = list(actions)
        self._scanned = False

    async def call(self, *args: Argument) -> RedisReply:
        reply = await self._pipe.call(*args)
        self._scanned = self._scanned or args[:2] == self._scan
        if self._scanned and self._actions:
            await self._actions.pop(0)()
        return reply


async def test_session_that_closes_during_the_check_is_no_repair(resources: Resources, session: str) -> None:
    """It has no deadline since it is closed: 200 such repairs were counted while many sessions closed."""
    live = keys.live(shard(resources), "shop")
    pipe = Interrupted(resources.pipe, live, lambda: resources.ledger.submit(ANN, Close(session)))
    check = ConsistencyCheck(pipe=pipe, ledger=resources.ledger, shards=resources.settings.shards)

    assert await check.run_once(resources.config.bots_and_deleted()) == 0


async def test_session_that_opens_during_the_check_is_still_found_by_its_user(resources: Resources, session: str) -> None:
    """The conversation is closed when its member is read, and open again when it would be deleted."""

    def close() -> Awaitable[object]:
        return resources.ledger.submit(ANN, Close(session))

    def reopen() -> Awaitable[object]:
        return resources.ledger.submit(ANN, Receive(Entry(user_id="ann", role="user", text="again"), "m2"))

    users = keys.users(shard(resources), "shop")
    await resources.redis.zadd(users, {keys.user_member("bob", Strand("shop", "web:bob")): 0})

    repairs = await repair_users(Interrupted(resources.pipe, users, close, reopen), shard(resources), "shop")

    assert repairs == 1
    assert len(await resources.live.sessions_of_user("shop", "ann")) == 1


@pytest.mark.usefixtures("session")
async def test_conversation_that_cannot_be_read_ends_no_repair(resources: Resources, worker: Worker) -> None:
    """It has no deadline either, and stands first: the others get theirs back."""
    due, member = keys.due(shard(resources)), keys.member(ANN)
    stuck = next(
        each
        for each in (Strand("shop", f"web:stuck{number}") for number in range(100))
        if keys.shard_of(each, resources.settings.shards) == shard(resources)
    )
    await resources.redis.zadd(keys.live(shard(resources), "shop"), {keys.member(stuck): 0})
    await resources.redis.set(keys.state(shard(resources), keys.member(stuck)), b"v:\xc1")
    await resources.redis.zrem(due, member)

    repairs = await worker.consistency.run_once(resources.config.bots_and_deleted())

    assert repairs == 1
    assert await resources.redis.zscore(due, member) is not None


async def test_a_session_that_is_not_found_by_its_user_is_added(resources: Resources, worker: Worker, session: str) -> None:
    """Version 0.1.0 opened sessions without the look-up; a member without a session is deleted."""
    users, bots = keys.users(shard(resources), "shop"), resources.config.bots_and_deleted()
    foreign = keys.user_member("bob", Strand("shop", "web:bob"))
    await resources.redis.zrem(users, keys.user_member("ann", ANN))
    missing = await resources.live.sessions_of_user("shop", "ann")

    added = await worker.consistency.run_once(bots)
    await resources.redis.zadd(users, {foreign: 0})
    deleted = await worker.consistency.run_once(bots)

    assert (missing, added, deleted) == ([], 1, 1)
    assert [found.session.id for found in await resources.live.sessions_of_user("shop", "ann")] == [session]
    assert await resources.redis.zscore(users, foreign) is None


@pytest.mark.parametrize("besides", (0, 12_000))
async def test_record_that_is_neither_undelivered_nor_pending_is_delivered_again(
    resources: Resources, worker: Worker, session: str, besides: int
) -> None:
    """Delivered to a consumer that was deleted: neither new nor pending. There may be many of them."""
    await worker.archivist.run_once()
    await resources.ledger.submit(ANN, Close(session))
    events = keys.events(shard(resources))
    ((_, (_, record)),) = await resources.pipe.call("XRANGE", events, "-", "+")
    await resources.pipe.call_all([("XADD", events, "*", "e", record)] * besides)
    await resources.redis.xreadgroup(GROUP, "deleted", {events: ">"})
    await resources.redis.xgroup_delconsumer(events, GROUP, "deleted")

    repairs = await worker.consistency.run_once(resources.config.bots_and_deleted())
    await worker.archivist.run_once()

    assert repairs == 1
    assert await resources.redis.xlen(events) == 0


async def test_everything_is_accounted_for_through_a_sessions_life(resources: Resources, worker: Worker, session: str) -> None:
    """Open, closed and waiting, archived: at each step what was counted in is somewhere."""
    accounts = [await worker.consistency.totals()]
    await resources.ledger.submit(ANN, Close(session))
    accounts.append(await worker.consistency.totals())
    await worker.archivist.run_once()
    accounts.append(await worker.consistency.totals())

    assert [(account.open, account.pending, account.unaccounted) for account in accounts] == [(1, 0, 0), (0, 1, 0), (0, 0, 0)]


async def test_lost_record_is_counted(resources: Resources, worker: Worker, session: str) -> None:
    """It cannot be repaired, so it shows in the totals."""
    await resources.ledger.submit(ANN, Close(session))
    await resources.redis.xtrim(keys.events(shard(resources)), maxlen=0, approximate=False)

    account = await worker.consistency.totals()

    assert account.unaccounted == 1
