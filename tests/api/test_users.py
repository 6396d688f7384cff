"""A user over all channels and conversations: sessions, variables, and closing what is open, with the name of the key."""

from app.worker import Worker
from tests.api.conftest import Client, ClientMaker, Json


async def sandbox(admin: Client, **policy: object) -> None:
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True, "policy": policy})


async def post(admin: Client, *, user: str = "ann", **more: object) -> Json:
    answer: Json = await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": user, "role": "user", "text": "hi", **more})
    return answer


async def test_a_user_s_sessions_are_listed_over_all_channels(admin: Client, worker: Worker) -> None:
    """Open ones first, then closed ones, the latest opened first; also those that are closed and not archived yet."""
    await sandbox(admin)
    first = await post(admin, channel="sms")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    await worker.archivist.run_once()
    second = await post(admin, channel="web")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    third = await post(admin, channel="web")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 1})
    fourth = await post(admin, channel="whatsapp")
    await post(admin, user="bob")
    listed = (await admin.ok("GET", "/v1/bots/shop/users/ann/sessions"))["sessions"]

    assert [each["id"] for each in listed] == [each["session_id"] for each in (fourth, third, second, first)]
    assert [each["status"] for each in listed] == ["open", "open", "closed", "closed"]


async def test_a_user_s_sessions_are_walked_by_pages(admin: Client, worker: Worker) -> None:
    """Every closed one once."""
    await sandbox(admin)
    opened = []
    for _ in range(5):
        opened.append((await post(admin))["session_id"])
        await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    await worker.archivist.run_once()
    seen: list[str] = []
    cursor: Json = {}
    while True:
        page = await admin.ok("GET", "/v1/bots/shop/users/ann/sessions", params={"limit": 2} | cursor)
        seen += [each["id"] for each in page["sessions"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}

    assert seen == opened[::-1]


async def test_all_open_sessions_of_a_user_are_closed(admin: Client) -> None:
    """On every channel, reason `api`; those of others stay open, and asking again closes nothing."""
    await sandbox(admin)
    mine = {(await post(admin, channel=channel))["session_id"] for channel in ("web", "sms")}
    other = await post(admin, user="bob")
    closed = (await admin.ok("POST", "/v1/bots/shop/users/ann/close"))["sessions"]
    again = (await admin.ok("POST", "/v1/bots/shop/users/ann/close"))["sessions"]

    assert {each["id"] for each in closed} == mine
    assert {(each["status"], each["reason"]) for each in closed} == {("closed", "api")}
    assert again == []
    assert (await admin.ok("GET", f"/v1/sessions/{other['session_id']}"))["status"] == "open"


async def test_all_open_sessions_of_a_conversation_are_closed(admin: Client) -> None:
    """Sessions that run side by side under the method `client` are among them."""
    await sandbox(admin, method="client")
    threads = [await post(admin, client_session_id=name, conversation_id="a/b") for name in ("x", "y")]
    other = await post(admin, client_session_id="x", conversation_id="a")
    closed = (await admin.ok("POST", "/v1/bots/shop/conversations/a%2Fb/close"))["sessions"]

    assert {each["id"] for each in closed} == {each["session_id"] for each in threads}
    assert (await admin.ok("GET", f"/v1/sessions/{other['session_id']}"))["status"] == "open"


async def test_a_close_names_its_key(admin: Client, clients: ClientMaker) -> None:
    """In the session, in the explanation and in the audit log; a key that may only read closes nothing."""
    await sandbox(admin)
    answer = await post(admin)
    reader, bot = await clients("read"), await clients("ingest")
    path = f"/v1/sessions/{answer['session_id']}"
    assert (await reader.refused("POST", f"{path}/close"))["status"] == 403
    closed = await bot.ok("POST", f"{path}/close")
    (entry,) = (await admin.ok("GET", "/v1/audit?bot=shop&limit=1"))["entries"]
    explained = await admin.ok("GET", f"{path}/explanation")

    assert closed["closed_by"] == "test ('ingest',)"
    assert (entry["action"], entry["actor"], entry["target"]) == ("session.closed", "test ('ingest',)", answer["session_id"])
    assert any("test ('ingest',)" in sentence for sentence in explained["words"])


async def test_a_user_s_variables_are_shared_by_all_conversations(admin: Client) -> None:
    """They outlive sessions, expire by their TTL, and are of one bot and one user alone."""
    await sandbox(admin)
    path = "/v1/bots/shop/users/ann%2F1/variables"
    made = await admin.ok("PUT", f"{path}/plan", {"value": {"name": "gold"}})
    await admin.ok("PUT", f"{path}/code", {"value": 1, "ttl_s": 60})
    await post(admin, user="ann/1")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    left = (await admin.ok("GET", path))["variables"]

    assert made["name"] == "plan"
    assert left == {"plan": {"value": {"name": "gold"}, "expires_at": made["expires_at"]}}
    assert (await admin.ok("GET", f"{path}/plan"))["value"] == {"name": "gold"}
    assert (await admin.ok("GET", "/v1/bots/shop/users/ann/variables"))["variables"] == {}
    await admin.ok("DELETE", f"{path}/plan")
    assert (await admin.refused("GET", f"{path}/plan"))["status"] == 404


async def test_a_user_s_variable_has_limits(admin: Client) -> None:
    """They have the limits of a conversation's variables: name, value, time to live."""
    await sandbox(admin)
    path = "/v1/bots/shop/users/ann/variables"

    assert (await admin.refused("PUT", f"{path}/{'x' * 129}", {"value": 1}))["code"] == "invalid_variable"
    assert (await admin.refused("PUT", f"{path}/x", {"value": "y" * 9000}))["status"] == 422
    assert (await admin.refused("PUT", f"{path}/x", {"value": 1, "ttl_s": 0}))["status"] == 422
    assert (await admin.refused("PUT", f"{path}/x", {}))["errors"][0]["where"] == "value"
