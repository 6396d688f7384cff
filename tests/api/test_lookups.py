"""Look-ups and lists find a session at every instant of its life: open, closed and not archived, archived."""

import pytest

from app.archive.sessions import insert_closed
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client, Json
from tests.closed import NOVEMBER_MS, closed_session


async def sandbox(admin: Client, bot: str = "shop", **policy: object) -> None:
    await admin.ok("POST", "/v1/bots", {"id": bot, "sandbox": True, "policy": policy})


async def post(admin: Client, *, bot: str = "shop", user: str = "ann", **more: object) -> Json:
    answer: Json = await admin.ok("POST", f"/v1/bots/{bot}/messages", {"user_id": user, "role": "user", "text": "hi", **more})
    return answer


async def advance(admin: Client, seconds: int = 3600, *, bot: str = "shop") -> None:
    await admin.ok("POST", f"/v1/bots/{bot}/clock/advance", {"seconds": seconds})


async def ids(admin: Client, path: str) -> list[str]:
    return [session["id"] for session in (await admin.ok("GET", path))["sessions"]]


async def test_a_closed_session_is_listed_before_it_is_archived(admin: Client, worker: Worker) -> None:
    """By every list, once, and as it is listed afterwards."""
    await sandbox(admin)
    answer = await post(admin, session_metadata={"n": 1}, tags=["vip"])
    await advance(admin)
    paths: tuple[str, ...] = ("/v1/sessions", "/v1/sessions?tag=vip&session_metadata.n=1", "/v1/bots/shop/users/ann/sessions")
    paths += ("/v1/conversations/web:ann/sessions", "/v1/sessions?order=closed_at", "/v1/sessions?sandbox=true")
    before = [await ids(admin, path) for path in paths]
    hidden = [
        await ids(admin, path)
        for path in ("/v1/sessions?tag=other", "/v1/sessions?sandbox=false", "/v1/sessions?bot=shop&reason=api")
    ]
    await worker.archivist.run_once()

    assert before == [[answer["session_id"]]] * len(paths)
    assert [await ids(admin, path) for path in paths] == before
    assert hidden == [[], [], []]


async def test_a_walk_meets_archived_and_waiting_sessions_in_order(admin: Client, worker: Worker) -> None:
    """Each once, either way, by opening and by close."""
    await sandbox(admin)
    opened = []
    for at in range(9):
        opened.append((await post(admin, user=f"u{at}"))["session_id"])
        await advance(admin)
        if at in {2, 5}:
            await worker.archivist.run_once()
    for order, expected in (
        ("opened_at", opened),
        ("-opened_at", opened[::-1]),
        ("closed_at", opened),
        ("-closed_at", opened[::-1]),
    ):
        seen: list[str] = []
        cursor: Json = {}
        while True:
            page = await admin.ok("GET", "/v1/sessions", params={"limit": 2, "order": order} | cursor)
            seen += [session["id"] for session in page["sessions"]]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert seen == expected, order


async def test_a_session_is_found_by_a_message_at_every_stage(admin: Client, worker: Worker) -> None:
    """Open, closed, archived; with the user's id or without; not under another bot."""
    await sandbox(admin)
    await sandbox(admin, "other")
    answer = await post(admin, message_id="a/b ü")
    await post(admin, user="bob")
    path = "/v1/bots/shop/messages/a%2Fb%20%C3%BC/session"
    stages = []
    for step in (None, advance, None):
        if step is not None:
            await step(admin)
        stages += [await admin.ok("GET", path), await admin.ok("GET", f"{path}?user_id=ann")]
    await worker.archivist.run_once()
    stages.append(await admin.ok("GET", path))

    assert {stage["id"] for stage in stages} == {answer["session_id"]}
    assert [stage["status"] for stage in stages] == ["open", "open", *["closed"] * 5]
    assert (await admin.refused("GET", "/v1/bots/other/messages/a%2Fb%20%C3%BC/session"))["status"] == 404
    assert (await admin.refused("GET", "/v1/bots/shop/messages/none/session"))["status"] == 404


async def test_entries_without_a_session_are_listed(admin: Client, worker: Worker) -> None:
    """With the reason, the latest first."""
    await sandbox(admin)
    first = await post(admin, role="bot", type="survey.sent", message_id="s1")
    await advance(admin, 60)
    await post(admin, role="bot", type="resolved", message_id="s2", user="bob")
    await worker.archivist.run_once()
    page = await admin.ok("GET", "/v1/bots/shop/unassigned-entries?limit=1")
    rest = await admin.ok("GET", f"/v1/bots/shop/unassigned-entries?limit=1&cursor={page['next']}")

    assert first["session"] == "none"
    assert [each["message"]["message_id"] for each in page["entries"] + rest["entries"]] == ["s2", "s1"]
    assert {each["reason"] for each in page["entries"] + rest["entries"]} == {"no_session"}
    assert rest["next"] is None


async def test_filters_take_several_values_or_refuse_them(admin: Client, resources: Resources) -> None:
    """A list means any of its values; any other parameter that is repeated is refused, and so is metadata without a key."""
    await sandbox(admin)
    await sandbox(admin, "bank")
    some = [
        closed_session(1, reason="api", channel="sms", outcome="dropped", session_metadata={"phone": "1", "vip": True}),
        closed_session(2, reason="ended", bot="bank", session_metadata={"phone": "2"}, last_bot_at_ms=NOVEMBER_MS + 62_000),
        closed_session(3, reason="inactivity", channel="help"),
    ]
    async with resources.engine.begin() as conn:
        await insert_closed(conn, some)
    names = [one.session.id for one in some]
    for query, expected in (
        ("reason=api&reason=ended", [2, 1]),
        ("channel=sms&channel=help", [3, 1]),
        ("bot=shop&bot=bank", [3, 2, 1]),
        ("bot=bank", [2]),
        ("outcome=dropped", [1]),
        ("session_metadata.phone=1", [1]),
        ("session_metadata[phone]=2", [2]),
        ("session_metadata.phone=1&session_metadata.vip=true", [1]),
        ("session_metadata.phone=1&session_metadata.vip=false", []),
        ("active_ms_from=60000", [2]),
        ("active_ms_to=60000", [3, 1]),
    ):
        assert await ids(admin, f"/v1/sessions?{query}") == [names[at - 1] for at in expected], query
    for query in (
        "user_id=a&user_id=b",
        "order=opened_at&order=closed_at",
        "limit=1&limit=2",
        "session_metadata.a=1&session_metadata.a=2",
    ):
        fault = (await admin.refused("GET", f"/v1/sessions?{query}"))["errors"][0]
        assert fault["where"] == query.partition("=")[0]
        assert "more than once" in fault["what"] or "twice" in fault["what"]
    for query in ("session_metadata=1", "session_metadata.=1", "metadata.a=1", "bot=none", "bot=shop&bot=none", "order=size"):
        assert (await admin.refused("GET", f"/v1/sessions?{query}"))["status"] in {404, 422}, query


@pytest.mark.parametrize("query", ("reason=api&reason=", "outcome=lost", "trade=both", "active_ms_from=-1", "contained=maybe"))
async def test_a_filter_s_value_is_checked(admin: Client, query: str) -> None:
    """One that no session can have is refused."""
    assert (await admin.refused("GET", f"/v1/sessions?{query}"))["status"] == 422


async def test_an_empty_batch_is_accepted(admin: Client) -> None:
    """It does nothing."""
    await sandbox(admin)

    assert await admin.ok("POST", "/v1/bots/shop/messages/batch", []) == {"accepted": 0, "refused": 0, "answers": []}
