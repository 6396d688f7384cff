"""A bot that reports each closure message that it passes on must not open a session by that (rulings 6 and 11)."""

import httpx

from tests.acceptance.system import Json, asked, pages, system
from tests.receiver import Receiver

BOT = "polite"
USERS = 5


async def _set_up(api: httpx.AsyncClient, hook: str) -> str:
    """A sandbox bot with a closure message and an endpoint; gives the endpoint's secret."""
    policy = {"closure_message": {"texts": {"default": "Bye!"}}}
    bot = {"id": BOT, "name": "Polite", "sandbox": True, "clock_mode": "manual", "policy": policy}
    await asked(api, "POST", "/v1/bots", bot)
    events = ["session.opened", "session.closure_message", "session.closed"]
    endpoint = await asked(api, "POST", f"/v1/bots/{BOT}/endpoints", {"url": hook, "events": events})
    return str(endpoint["secret"])


async def _say(api: httpx.AsyncClient, user: str, **more: object) -> Json:
    return await asked(api, "POST", f"/v1/bots/{BOT}/messages", {"user_id": user, **more})


async def test_reporting_a_closure_message_opens_no_session(redis_url: str, database_url: str) -> None:
    """The report is a late entry of the session that closed; the user's own reply opens one."""
    with Receiver() as receiver, system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api:
            secret = await _set_up(api, receiver.url("/hook"))
            opened: set[str] = set()
            for number in range(USERS):
                opened.add((await _say(api, f"user-{number}", role="user", text="hello"))["session_id"])
            await receiver.until(USERS, path="/hook")

            await asked(api, "POST", f"/v1/bots/{BOT}/clock/advance", {"seconds": 15 * 60})
            requests = await receiver.until(3 * USERS, path="/hook", within_s=60)
            closures = [request.verify(secret) for request in requests if request.type == "session.closure_message"]
            answers = [await _report(api, closure) for closure in closures]
            reply = await _say(api, "user-0", role="user", text="wait!")

            live = await asked(api, "GET", f"/v1/bots/{BOT}/live")
            sessions = [session async for session in pages(api, "/v1/sessions", "sessions", bot=BOT)]

    assert len(closures) == USERS
    assert {answer["session"] for answer in answers} == {"late"}
    assert {answer["session_id"] for answer in answers} == opened
    assert reply["session"] == "opened"
    assert [session["id"] for session in live["sessions"]] == [reply["session_id"]]
    assert sorted(session["user_id"] for session in sessions) == [f"user-{number}" for number in range(USERS)]


async def _report(api: httpx.AsyncClient, closure: Json) -> Json:
    data = closure["data"]
    return await _say(api, data["session"]["user_id"], role="bot", text=data["text"], in_reply_to=data["event_id"])
