"""A bot that answers every closure message must not thereby keep its users' sessions alive for ever (ruling 6)."""

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


async def test_answering_a_closure_message_opens_no_session(redis_url: str, database_url: str) -> None:
    """The bot says the farewell to its user and reports that it did: no session opens; the user's own reply opens one."""
    with Receiver() as receiver, system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api:
            secret = await _set_up(api, receiver.url("/hook"))
            for number in range(USERS):
                await _say(api, f"user-{number}", role="user", text="hello")
            await receiver.until(USERS, path="/hook")

            await asked(api, "POST", f"/v1/bots/{BOT}/clock/advance", {"seconds": 15 * 60})
            told = await receiver.until(3 * USERS, path="/hook", within_s=60)
            farewells = [request.verify(secret) for request in told if request.type == "session.closure_message"]
            answers = [await _answer(api, farewell) for farewell in farewells]
            late = await _say(api, "user-0", role="user", text="wait!")

            live = await asked(api, "GET", f"/v1/bots/{BOT}/live")
            sessions = [session async for session in pages(api, "/v1/sessions", "sessions", bot=BOT)]

    assert len(farewells) == USERS
    assert [(answer["session"], answer["session_id"]) for answer in answers] == [("none", None)] * USERS
    assert late["session"] == "opened"
    assert [session["id"] for session in live["sessions"]] == [late["session_id"]]
    assert sorted(session["user_id"] for session in sessions) == [f"user-{number}" for number in range(USERS)]


async def _answer(api: httpx.AsyncClient, farewell: Json) -> Json:
    data = farewell["data"]
    return await _say(api, data["session"]["user_id"], role="bot", text=data["text"], in_reply_to=data["event_id"])
