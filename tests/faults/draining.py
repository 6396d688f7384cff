"""Bounded waiting until nothing is open, nothing is left to archive and nothing to deliver."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import pytest

from app.live import keys
from tests.faults import table
from tests.faults.installation import Installation
from tests.faults.talk import Log, Talker

_PENDING = """
    SELECT d.bot_id, d.event, d.attempt, d.last_status, d.last_error, d.next_attempt_at - now() AS due_in,
           d.leased_until - now() AS leased_for, p.status AS before, h.failures, h.resume_at - now() AS paused_for
    FROM deliveries d LEFT JOIN deliveries p ON p.id = d.after_id LEFT JOIN endpoint_health h ON h.endpoint_id = d.endpoint_id
    WHERE d.status = 'pending' ORDER BY d.next_attempt_at LIMIT 10
"""

SHARDS = 16
POLL_S = 0.05


def allowed_s(promised_s: float) -> float:
    """The bound for a promise in seconds: exact in `make faults`, which has the machine for itself; else longer if it is busy."""
    busy = 1.0 if table.is_complete_run else max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return promised_s * busy


async def until(
    met: Callable[[], Awaitable[bool]], *, within_s: float, what: str, left: Callable[[], Awaitable[object]] | None = None
) -> float:
    """Poll until `met`; gives how long that took, in s, and fails when the time is up, showing what is `left`."""
    began = time.monotonic()
    while not await met():
        if time.monotonic() - began > within_s:
            pytest.fail(f"{what}: not within {within_s:g} s" + (f"; left: {await left()}" if left else ""))
        await asyncio.sleep(POLL_S)
    return time.monotonic() - began


async def live_counts(installation: Installation, bot: str) -> tuple[int, int]:
    """How many of a bot's sessions are open, and how many event records of all bots wait in the streams."""
    async with installation.live() as client, client.pipeline(transaction=False) as pipe:
        for shard in range(SHARDS):
            pipe.zcard(keys.live(shard, bot))
            pipe.xlen(keys.events(shard))
        counts = await pipe.execute()
    return sum(counts[::2]), sum(counts[1::2])


async def pending_deliveries(installation: Installation) -> int:
    (row,) = await installation.rows("SELECT count(*) AS n FROM deliveries WHERE status = 'pending'")
    return int(row.n)


async def until_archived(installation: Installation, bot: str, *, within_s: float = 60) -> float:
    """Until no session of the bot is open and the streams are empty."""

    async def met() -> bool:
        return await live_counts(installation, bot) == (0, 0)

    return await until(met, within_s=within_s, what=f"everything of {bot} closed and archived")


async def until_delivered(installation: Installation, *, within_s: float = 60) -> float:
    """Until no delivery is pending."""

    async def met() -> bool:
        return await pending_deliveries(installation) == 0

    async def left() -> list[str]:
        return [str(row) for row in await installation.rows(_PENDING)]

    return await until(met, within_s=within_s, what="everything delivered", left=left)


async def unaccounted(installation: Installation) -> int:
    """The value of `adjourn_unaccounted`, calculated again from Redis."""
    async with installation.live() as client:
        bots = [name.decode().removeprefix("bot:") for name in await client.hkeys(keys.CONFIG) if name.startswith(b"bot:")]
        total = 0
        for shard in range(SHARDS):
            counts = {name: int(value) for name, value in (await client.hgetall(keys.counts(shard))).items()}
            opened, closed, written, released = (counts.get(name, 0) for name in (b"opened", b"closed", b"written", b"released"))
            is_open = sum([await client.zcard(keys.live(shard, bot)) for bot in bots])
            total += abs(opened - closed - is_open) + abs(written - released - await client.xlen(keys.events(shard)))
    return total


async def close_all(installation: Installation, bot: str) -> None:
    """Move a sandbox bot's clock past its last deadline by the API, and wait until all is archived and delivered."""
    async with installation.caller() as caller:
        await Talker(caller, bot, Log()).advance(seconds=3_600)
    await until_archived(installation, bot)
    await until_delivered(installation)


async def end_all(installation: Installation, bot: str, log: Log) -> None:
    """Let every user end what is open, for a bot that goes by real time; then wait until all is archived and delivered."""
    last = {user: said[-1].number for (_, user), said in log.conversations().items()}
    async with installation.caller() as caller:
        talker = Talker(caller, bot, log)
        for user, number in last.items():
            await talker.say(user, number + 1, kind="session.end")
    await until_archived(installation, bot)
    await until_delivered(installation)
