"""Kill -9 of a worker at each step of an erasure: the next one goes on, and of the user the receipt alone is left."""

import asyncio
from functools import partial

import pytest
from msgspec import json

from app.archive.erasures import digest_of
from app.failpoints import NAMES
from tests.faults.conftest import full
from tests.faults.draining import until, until_archived, until_delivered
from tests.faults.installation import Installation
from tests.faults.requests import Caller

POINTS = tuple(name for name in NAMES if name.startswith("erase."))
ROUNDS = 2
ALLOWED_S = 60


# `tests/api/test_erasure.py` has the short form: a crash at each step within one process.
@pytest.mark.parametrize("points", (full(POINTS * ROUNDS, timeout_s=600),))
async def test_worker_killed_while_a_user_is_erased(stage: Installation, points: tuple[str, ...]) -> None:
    """Neither Redis nor Postgres nor a log holds the user's id or words; another user's are there."""
    await stage.start("api", log_level="DEBUG")
    for number, point in enumerate(points):
        bot, user = await stage.make_bot(f"bot-{number}", clock=None), f"user-{number}-44"
        async with stage.caller() as caller:
            await _live_through(stage, caller, bot, user)
            for place in (await _redis(stage), await _postgres(stage)):
                assert f"sesame of {user}" in place
            erasure = (await caller.delete(f"/v1/bots/{bot}/users/{user}")).body["id"]
            await _kill_at(stage, point)
            worker = await stage.start("worker", log_level="DEBUG")
            await until(partial(_is_done, caller, bot, erasure), within_s=ALLOWED_S, what="the erasure is done")
        await worker.stop()

        for place in (await _redis(stage), await _postgres(stage), _logs(stage)):
            assert user not in place, place[max(0, place.index(user) - 200) : place.index(user) + 200]
        assert digest_of(bot, user).hex() in await _postgres(stage)
        assert f"sesame of other-{user[5:]}" in await _postgres(stage) + await _redis(stage)
    assert stage.traces() == []


async def _live_through(stage: Installation, caller: Caller, bot: str, user: str) -> None:
    """Sessions of two users: archived and delivered, on their way, and open; an entry without a session, and a variable."""
    other = f"other-{user[5:]}"
    worker = await stage.start("worker", log_level="DEBUG")
    await _say(caller, bot, user, "sms", type="survey.sent")
    for each in (user, other):
        await _close(caller, await _say(caller, bot, each, "web"))
    await until_archived(stage, bot)
    await until_delivered(stage)
    await worker.stop()
    for each in (user, other):
        await _close(caller, await _say(caller, bot, each, "whatsapp"))
        await _say(caller, bot, each, "telegram", type="handoff")
    await _say(caller, bot, user, "web", type="survey.sent")  # late


async def _say(caller: Caller, bot: str, user: str, channel: str, **fields: str) -> str:
    entry = {"user_id": user, "role": "user", "channel": channel, "text": f"sesame of {user}"}
    answer = await caller.post(f"/v1/bots/{bot}/messages", json.encode(entry | fields))
    assert answer.status == 200, answer.body
    return str(answer.body["session_id"])


async def _close(caller: Caller, session: str) -> None:
    assert (await caller.post(f"/v1/sessions/{session}/close", b"")).status == 200


async def _kill_at(stage: Installation, point: str) -> None:
    victim = await stage.start("worker", armed=point, log_level="DEBUG")
    async with asyncio.timeout(ALLOWED_S):
        await victim.over.wait()
    assert victim.status == -9


async def _is_done(caller: Caller, bot: str, erasure: str) -> bool:
    return bool((await caller.get(f"/v1/bots/{bot}/erasures/{erasure}")).body["state"] == "done")


async def _redis(stage: Installation) -> str:
    """Every key and every value."""
    found: list[object] = []
    async with stage.live() as client:
        read = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"stream": client.xrange,
            b"zset": lambda name: client.zrange(name, 0, -1),
        }
        async for name in client.scan_iter():
            found += [name, await read[await client.type(name)](name)]
    return repr(found)


async def _postgres(stage: Installation) -> str:
    """Every row of every table."""
    tables = await stage.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    lines = [
        row.line
        for (table,) in tables
        for row in await stage.rows(f'SELECT "{table}"::text AS line FROM "{table}"')  # noqa: S608 - its own
    ]
    return "\n".join(lines)


def _logs(stage: Installation) -> str:
    """The output of all processes, servers included."""
    return "\n".join(path.read_text(errors="replace") for path in stage.folder.rglob("*.log"))
