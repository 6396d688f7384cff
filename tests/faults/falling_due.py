"""Sessions that are opened by the API and let fall due at once, behind its back, for the workers to find."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.installation import SILENCE_MS, Installation
from tests.faults.talk import Log, Talker

BATCH = 8
PACE_S = 0.1
A_REQUEST = 500

# When each was archived, by the machine's own clock.
ARCHIVED = 'SELECT user_id AS "user", extract(epoch FROM archived_at)::float8 AS at_s FROM sessions'


@asynccontextmanager
async def falling_due(stage: Installation, bot: str, log: Log, due_s: dict[str, float]) -> AsyncIterator[None]:
    """Open a few sessions after the other and let each few fall due; `due_s` gets when that was, by user."""
    over = asyncio.Event()

    async def open_and_let_be() -> None:
        async with stage.caller() as caller:
            talker, number = Talker(caller, bot, log), 0
            while not over.is_set():
                number += 1
                users = [f"u{number}.{index}" for index in range(BATCH)]
                said = await talker.say_all(users, 1)
                due_s.update(dict.fromkeys(users, time.time()))
                await stage.move_clock(bot, to_ms=said[0].received_at_ms + SILENCE_MS)
                await asyncio.sleep(PACE_S)

    task = asyncio.create_task(open_and_let_be())
    try:
        yield
    finally:
        over.set()
        await task


async def open_many(stage: Installation, bot: str, log: Log, count: int) -> int:
    """Open so many sessions; gives when they will all be due, in ms of the bot's clock."""
    async with stage.caller() as caller:
        talker = Talker(caller, bot, log)
        for start in range(0, count, A_REQUEST):
            await talker.say_all([f"{bot}.{number}" for number in range(start, min(start + A_REQUEST, count))], 1)
    return max(said.received_at_ms for said in log.said) + SILENCE_MS
