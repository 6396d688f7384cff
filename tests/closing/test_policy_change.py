"""A changed policy counts for open sessions, too."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from app.domain.entry import Entry
from app.domain.records import Receive, Session
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live import keys
from app.live.fold import StuckConversation
from app.resources import Resources
from app.worker import Worker

MINUTE_MS = 60_000
ANN, BEN = Strand("shop", "web:ann"), Strand("shop", "web:ben")

SaveBot = Callable[..., Awaitable[None]]


async def say(resources: Resources, strand: Strand) -> str:
    entry = Entry(user_id=strand.conversation.partition(":")[2], role="user", text="hello")
    outcome = await resources.ledger.submit(strand, Receive(entry, "m1"))
    assert outcome.answer is not None
    return outcome.answer.session_id or ""


async def session_of(resources: Resources, session_id: str) -> Session:
    found = await resources.live.find(session_id)
    assert found is not None
    return found.session


@pytest.mark.parametrize("minutes", (5, 60))
async def test_open_sessions_get_the_new_deadline(resources: Resources, worker: Worker, save_bot: SaveBot, minutes: int) -> None:
    """Shorter or longer: counted from the same entry, without anybody saying a word."""
    await save_bot("shop", version=1, minutes=15)
    sessions = [await session_of(resources, await say(resources, strand)) for strand in (ANN, BEN)]
    now_ms = resources.clock.now_ms()

    await save_bot("shop", version=2, minutes=minutes, effective_at_ms=now_ms)
    looked_at = await worker.policy_change.run_once(now_ms)

    assert looked_at == 2
    for before in sessions:
        after = await session_of(resources, before.id)
        assert before.deadline_at_ms == before.opened_at_ms + 15 * MINUTE_MS
        assert after.deadline_at_ms == before.opened_at_ms + minutes * MINUTE_MS
        assert after.policy_version == 2


async def test_session_overdue_by_the_new_policy_closes_at_the_change(
    resources: Resources, worker: Worker, save_bot: SaveBot
) -> None:
    """At the deadline that the new policy gives, but never before the change."""
    await save_bot("shop", version=1, minutes=60, sandbox=True)
    opened_at_ms = 1_700_000_000_000
    entry = Entry(user_id="ann", role="user", text="hello")
    outcome = await resources.ledger.submit(ANN, Receive(entry, "m1"), at_ms=opened_at_ms)
    assert outcome.answer is not None
    changed_at_ms = opened_at_ms + 30 * MINUTE_MS
    await resources.sandboxes.forward("shop", to_ms=changed_at_ms)

    await save_bot("shop", version=2, minutes=15, effective_at_ms=changed_at_ms)
    await worker.policy_change.run_once(resources.clock.now_ms())

    session = await session_of(resources, outcome.answer.session_id or "")
    assert (session.closed_at_ms, session.reason, session.policy_version) == (changed_at_ms, "inactivity", 2)


async def test_sessions_are_gone_through_again_when_nobody_can_be_behind(
    resources: Resources, worker: Worker, save_bot: SaveBot
) -> None:
    """A process that had not received the change may have opened sessions by the old policy; after that it is done with."""
    await save_bot("shop", version=1, minutes=15)
    await save_bot("shop", version=2, minutes=60)
    await say(resources, ANN)
    now_ms = resources.clock.now_ms()

    runs = [await worker.policy_change.run_once(at_ms) for at_ms in (now_ms, now_ms + 100, now_ms + 5_000, now_ms + 9_000)]

    assert runs == [1, 0, 1, 0]


BOTS = ("a", "shop", "z")


async def spoil(resources: Resources, strand: Strand) -> None:
    """Leave something in place of its state, as after a restart."""
    await resources.redis.set(
        keys.state(keys.shard_of(strand, resources.settings.shards), keys.member(strand)), "nothing of ours"
    )
    resources.ledger._cache.clear()


async def minutes_of(resources: Resources, session_id: str) -> int:
    session = await session_of(resources, session_id)
    return (session.deadline_at_ms - session.opened_at_ms) // MINUTE_MS


async def test_conversation_that_cannot_be_decided_stops_no_change(
    resources: Resources, worker: Worker, save_bot: SaveBot
) -> None:
    """It is raised once a pass; the other sessions of its bot and all other bots get theirs, and the next version, too."""
    for bot in BOTS:
        await save_bot(bot, version=1, minutes=15)
    sessions = [await say(resources, strand) for strand in (BEN, Strand("a", "web:ann"), Strand("z", "web:ann"))]
    await say(resources, ANN)
    await spoil(resources, ANN)
    now_ms = resources.clock.now_ms()

    for version, minutes in ((2, 60), (3, 30)):
        for bot in BOTS:
            await save_bot(bot, version=version, minutes=minutes)
        for pass_ms in (now_ms, now_ms + 5_000):
            with pytest.raises(StuckConversation):
                await worker.policy_change.run_once(pass_ms)
        assert [await minutes_of(resources, session) for session in sessions] == [minutes] * 3
        assert await resources.redis.hgetall(keys.POLICIES_APPLIED) == {bot.encode(): b"%d" % version for bot in BOTS}
        assert await worker.policy_change.run_once(now_ms + 9_000) == 0
        now_ms += 10_000


async def test_lease_that_a_full_redis_refuses_is_asked_for_ever_less_often(
    resources: Resources, worker: Worker, save_bot: SaveBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job logs one warning for each try, so a full Redis must not be asked at every tick."""
    await save_bot("shop", version=1, minutes=15)
    await save_bot("shop", version=2, minutes=5)
    call, full = resources.pipe.call, True

    async def refuse_writes(*command: Any, **more: Any) -> Any:  # noqa: ANN401 - the pipe's own
        if full and command[0] == "SET":
            raise ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
        return await call(*command, **more)

    monkeypatch.setattr(resources.pipe, "call", refuse_writes)
    now_ms = resources.clock.now_ms()
    refused_at_s = []
    for second in range(40):
        try:
            await worker.policy_change.run_once(now_ms + 1_000 * second)
        except ResponseError:
            refused_at_s.append(second)
    full = False
    for second in (100, 110):
        await worker.policy_change.run_once(now_ms + 1_000 * second)

    assert refused_at_s == [0, 1, 3, 7, 15, 31]
    assert await resources.redis.hget(keys.POLICIES_APPLIED, "shop") == b"2"


async def test_pass_that_fails_is_made_again_ever_less_often(resources: Resources, worker: Worker, save_bot: SaveBot) -> None:
    """One shard's list of a bot's open sessions cannot be read: the others are gone through, other bots get theirs."""
    for version in (1, 2):
        for bot in BOTS:
            await save_bot(bot, version=version, minutes=15 * version)
    in_shard = {keys.shard_of(strand, resources.settings.shards): strand for strand in (ANN, BEN)}
    shard = next(shard for shard in range(resources.settings.shards) if shard not in in_shard)
    session, other = await say(resources, ANN), await say(resources, Strand("z", "web:ann"))
    for bot in BOTS:
        await save_bot(bot, version=3, minutes=5)
    await resources.redis.set(keys.live(shard, "shop"), "no set")
    now_ms = resources.clock.now_ms()

    failed_at_s = []
    for second in range(100):
        try:
            await worker.policy_change.run_once(now_ms + 1_000 * second)
        except (Unavailable, ResponseError):
            failed_at_s.append(second)
    await resources.redis.delete(keys.live(shard, "shop"))
    mended = [await worker.policy_change.run_once(now_ms + 1_000 * second) for second in (200, 210)]

    assert failed_at_s == [0, 1, 3, 7, 15, 31, 63]
    assert [await minutes_of(resources, found) for found in (session, other)] == [5, 5]
    assert mended == [1, 1]
    assert await resources.redis.hget(keys.POLICIES_APPLIED, "shop") == b"3"
