"""Open sessions of all bots by deadline, with counts by channel, and what happens to them as server-sent events."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import pytest
from msgspec import json

from app.api.session_views import AllLivePage
from app.errors import RateLimited
from app.live import keys
from app.queries.live_events import LiveEvents, id_of, pause_s, position_of
from app.resources import Resources
from app.worker import Worker
from bench.live import measure
from tests.api.conftest import Client, ClientMaker, Json

_FRAME = re.compile(r"id: (\S+)\nevent: (\S+)\ndata: (.*)")


@pytest.fixture
async def bots(admin: Client) -> None:
    for bot, minutes in (("shop", 15), ("bank", 10), ("test", 10)):
        await admin.ok("POST", "/v1/bots", {"id": bot, "sandbox": bot == "test", "policy": {"inactivity_minutes": minutes}})


async def say(admin: Client, bot: str, user: str, **more: object) -> str:
    entry = {"user_id": user, "role": "user", "text": "hi", **more}
    answer: Json = await admin.ok("POST", f"/v1/bots/{bot}/messages", entry)
    return str(answer["session_id"])


async def walk(client: Client, query: str = "", *, limit: int = 50) -> list[str]:
    """The users on all pages, in order."""
    users, cursor = [], ""
    while True:
        page = await client.ok("GET", f"/v1/live?limit={limit}{query}{cursor}")
        AllLivePage.model_validate(page, extra="forbid")
        users += [session["user_id"] for session in page["sessions"]]
        if page["next"] is None:
            return users
        cursor = f"&cursor={page['next']}"


@pytest.mark.usefixtures("bots")
async def test_the_next_due_first_over_all_bots(admin: Client, clients: ClientMaker) -> None:
    """The bank's close after 10 minutes, the shop's after 15; a sandbox bot's are shown only if it is named."""
    for user in ("s1", "s2", "s3"):
        await say(admin, "shop", user)
    for user in ("b1", "b2"):
        await say(admin, "bank", user, channel="whatsapp")
    await say(admin, "test", "t1")
    only_shop = await clients("read", bots=["shop"])

    assert await walk(admin) == ["b1", "b2", "s1", "s2", "s3"]
    assert await walk(admin, limit=1) == await walk(admin, limit=2) == await walk(admin)
    assert await walk(admin, "&channel=web", limit=1) == ["s1", "s2", "s3"]
    assert await walk(admin, "&bot=test") == ["t1"]
    assert await walk(admin, "&bot=bank&bot=shop&channel=whatsapp") == ["b1", "b2"]
    assert await walk(only_shop, limit=2) == ["s1", "s2", "s3"]
    await only_shop.refused("GET", "/v1/live?bot=bank")


@pytest.mark.usefixtures("bots")
async def test_counts_by_channel_follow_opens_and_closes(admin: Client, clients: ClientMaker) -> None:
    """Each open session once in its channel; a key sees its own bots' counts."""
    await say(admin, "shop", "ann")
    await say(admin, "shop", "ann", channel="sms")
    closing = await say(admin, "shop", "bob")
    await say(admin, "bank", "ann")
    await admin.ok("POST", f"/v1/sessions/{closing}/close")
    only_bank = await clients("read", bots=["bank"])
    counts = await admin.ok("GET", "/v1/live")

    assert counts["open"] == 3
    assert counts["by_channel"] == [
        {"bot": "bank", "channel": "web", "open": 1},
        {"bot": "shop", "channel": "sms", "open": 1},
        {"bot": "shop", "channel": "web", "open": 1},
    ]
    assert (await only_bank.ok("GET", "/v1/live"))["by_channel"] == [{"bot": "bank", "channel": "web", "open": 1}]
    assert (await admin.ok("GET", "/v1/live?channel=sms"))["open"] == 1


@pytest.mark.usefixtures("bots")
async def test_wrong_counts_are_repaired(admin: Client, worker: Worker, resources: Resources) -> None:
    """As after an upgrade: sessions are open that were not counted."""
    for user in ("ann", "bob", "eve"):
        await say(admin, "shop", user)
    await say(admin, "bank", "ann", channel="sms")
    before = (await admin.ok("GET", "/v1/live"))["by_channel"]
    for shard in range(resources.settings.shards):
        await resources.redis.delete(keys.channels(shard))
    lost = (await admin.ok("GET", "/v1/live"))["by_channel"]
    repairs = await worker.consistency.run_once(resources.config.bots_and_deleted())

    assert lost == []
    assert (await admin.ok("GET", "/v1/live"))["by_channel"] == before
    assert repairs > 0
    assert await worker.consistency.run_once(resources.config.bots_and_deleted()) == 0


class Follower:
    """A client of the events, without HTTP: ASGI in one process gives no answer before its end."""

    def __init__(self, events: LiveEvents, after: str | None = None, *, bots: set[str] | None = None) -> None:
        self.seen: list[Json] = []
        self.resets = 0
        self.last_id = after
        position = None if after is None else position_of(after)
        covers: Callable[[str], bool] = (lambda bot: bot in bots) if bots is not None else (lambda _: True)
        self._stream: AsyncIterator[bytes] = events.follow(position, covers=covers, goes_on=lambda: True)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for piece in self._stream:
            for block in piece.decode().split("\n\n"):
                found = _FRAME.fullmatch(block)
                if found is not None and found[2] == "reset":
                    self.resets += 1
                elif found is not None:
                    self.seen.append(json.decode(found[3]))
                    assert self.seen[-1]["id"] == found[1]
                ids = re.findall(r"^id: (\S+)$", block, re.MULTILINE)
                self.last_id = ids[-1] if ids else self.last_id

    async def until(self, events: int) -> list[Json]:
        async with asyncio.timeout(10):
            while len(self.seen) < events or self.last_id is None:
                await asyncio.sleep(0.02)
        return self.seen

    async def leave(self) -> str:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._stream.aclose()  # type: ignore[attr-defined]
        assert self.last_id is not None
        return self.last_id


@pytest.mark.usefixtures("bots")
async def test_a_client_that_reconnects_misses_nothing(admin: Client, resources: Resources) -> None:
    """From the list's instant on, over a reconnect to another process, each event once and in order."""
    await say(admin, "shop", "before")
    page = await admin.ok("GET", "/v1/live")
    first, second = resources.live_events, LiveEvents(resources.pipe, shards=resources.settings.shards, most=10)
    follower = Follower(first, page["last_event_id"])
    opened = await say(admin, "shop", "ann")
    await follower.until(1)
    last_id = await follower.leave()
    await admin.ok("POST", f"/v1/sessions/{opened}/close")
    await say(admin, "bank", "bob", channel="sms")
    again = Follower(second, last_id)
    seen = [*follower.seen, *await again.until(2)]
    await say(admin, "shop", "eve")
    seen = [*follower.seen, *await again.until(3)]
    await again.leave()

    expected = [("session.opened", "ann"), ("session.closed", "ann"), ("session.opened", "bob"), ("session.opened", "eve")]
    assert [(event["type"], event["user_id"]) for event in seen] == expected
    assert [event["reason"] for event in seen] == [None, "api", None, None]
    assert seen[1]["closed_at"] == seen[1]["at"]
    assert seen[2]["closes_at"] > seen[2]["opened_at"]


@pytest.mark.usefixtures("bots")
async def test_a_client_gets_the_events_of_its_bots_alone(admin: Client, resources: Resources) -> None:
    """Two clients of one reader: each event goes to those that may see it."""
    shop, both = Follower(resources.live_events, bots={"shop"}), Follower(resources.live_events)
    await asyncio.gather(shop.until(0), both.until(0))
    await say(admin, "bank", "bob")
    await say(admin, "shop", "ann")
    await asyncio.gather(both.until(2), shop.until(1))
    await asyncio.gather(shop.leave(), both.leave())

    assert {event["bot"] for event in both.seen} == {"shop", "bank"}
    assert [event["bot"] for event in shop.seen] == ["shop"]


async def test_a_position_that_is_no_longer_held_is_reset(resources: Resources) -> None:
    """An hour ago, and an instant in the future that no process has given out; what was a moment ago is not."""
    now = await resources.live_events.now()
    followers = [Follower(resources.live_events, id_of((now[0] + ms, 0, 0, 0))) for ms in (-3_600_000, 3_600_000, -1_000, 100)]
    async with asyncio.timeout(10):
        while [follower.resets for follower in followers] != [1, 1, 0, 0]:
            await asyncio.sleep(0.02)
    for follower in followers:
        await follower.leave()


async def test_events_go_on_after_redis_was_unreachable(admin: Client, resources: Resources) -> None:
    """The connection is lost: the reader begins anew, and its clients notice nothing."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    follower = Follower(resources.live_events)
    await follower.until(0)
    await say(admin, "shop", "ann")
    await resources.pipe.stop()
    await say(admin, "shop", "bob")
    seen = await follower.until(2)
    await follower.leave()

    assert [event["user_id"] for event in seen] == ["ann", "bob"]
    assert follower.resets == 0


async def test_a_stream_ends_with_its_key(clients: ClientMaker, admin: Client, resources: Resources) -> None:
    """A key that is revoked ends the stream within a second."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    made = await admin.ok("POST", "/v1/keys", {"name": "screen", "scopes": ["read"]})
    reader = await clients("read")
    headers = {"authorization": f"Bearer {made['key']}"}
    streaming = asyncio.create_task(reader.get("/v1/live/events", headers=headers))
    async with asyncio.timeout(10):
        while resources.live_events.clients == 0:
            await asyncio.sleep(0.02)
    still_open = not streaming.done()
    await admin.ok("DELETE", f"/v1/keys/{made['id']}")
    async with asyncio.timeout(10):
        reply = await streaming

    assert still_open
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert resources.live_events.clients == 0


async def test_an_id_of_no_event_is_refused(admin: Client) -> None:
    """As header or parameter, before the stream begins."""
    for headers, query in (({"last-event-id": "7"}, ""), ({}, "?after=1-2-3"), ({}, "?after=1-2-3-x")):
        problem = await admin.refused("GET", f"/v1/live/events{query}", headers=headers)
        assert problem["errors"][0]["where"] == "Last-Event-ID"


def test_many_clients_are_sent_events_less_often() -> None:
    """A few wait for a quarter of a second, and none for over 3; two hundred get fewer pieces a second than they are."""
    assert pause_s(5) < 0.25
    assert 200 / pause_s(200) < 200
    assert pause_s(5_000) == 3


@pytest.mark.slow
def test_clients_that_are_cut_off_lose_and_double_nothing() -> None:
    """Fifty sockets, each aborted once while entries come in, and a session is opened by each hundredth of them."""
    cost = measure(clients=50, rate=200, seconds=3)

    assert (cost.followed.differing, cost.followed.resets) == (0, 0)
    assert cost.followed.connections == 100
    assert cost.followed.events >= 12


async def test_streams_of_one_key_leave_room_to_others(resources: Resources) -> None:
    """A stream holds a connection for as long as its client likes: one key has two thirds of them."""
    events = LiveEvents(resources.pipe, shards=resources.settings.shards, most=4)
    streams = [events.follow(None, covers=lambda _: True, goes_on=lambda: True, owner="greedy") for _ in range(2)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(RateLimited):
        events.check_room("greedy")
    events.check_room("modest")
    for stream in streams:
        assert isinstance(stream, AsyncGenerator)
        await stream.aclose()

    events.check_room("greedy")
