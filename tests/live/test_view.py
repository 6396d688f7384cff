"""The list of open sessions: walked by pages, each session that stays open is given once."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from app.clock import Clock
from app.domain.entry import Entry
from app.domain.policy import Policy, PolicyVersion
from app.domain.records import BotRules, Receive
from app.domain.strand import Strand
from app.live.ledger import Ground, Ledger
from app.live.pipe import Pipe
from app.live.script import Script
from app.live.view import View

SHARDS = 4


@pytest.fixture
async def pipe(redis_url: str) -> AsyncIterator[Pipe]:
    redis = Redis.from_url(redis_url, protocol=2)
    opened = Pipe(redis, timeout_s=5)
    yield opened
    await opened.close()
    await redis.aclose()


@pytest.mark.parametrize("limit", (1, 3, 200))
async def test_walk_gives_each_open_session_once_also_those_opened_in_one_ms(pipe: Pipe, limit: int) -> None:
    """40 sessions in 4 instants: ten in each, spread over the shards."""
    clock = Clock()
    script = Script(pipe, clock, max_skew_ms=500)
    ground = Ground(BotRules("bot", PolicyVersion(1, 0, Policy())), sandbox=True)
    ledger = Ledger(pipe=pipe, script=script, clock=clock, shards=SHARDS, ground=lambda _: ground)
    for number in range(40):
        entry = Entry(user_id=f"user{number}", role="user", text="hello")
        at_ms = 1_700_000_000_000 + number // 10
        await ledger.submit(Strand("bot", f"web:user{number}"), Receive(entry, "m1"), at_ms=at_ms)
    view = View(pipe, shards=SHARDS)

    walked, after = [], None
    while True:
        found, after = await view.page("bot", after=after, limit=limit)
        walked += found
        if after is None:
            break

    assert len(walked) == len({item.session.id for item in walked}) == 40
    opened = [item.session.opened_at_ms for item in walked]
    assert opened == sorted(opened)
