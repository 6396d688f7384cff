"""Queries of sessions: one shape open or closed, found wherever they stand, walked without gap or repeat."""

import asyncio

from app.api.session_views import LivePage, MessagePage, SessionPage, SessionView
from app.archive.sessions import insert_closed
from app.domain.entry import Entry
from app.domain.records import Receive
from app.domain.session_view import session_view
from app.domain.strand import Strand
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client, ClientMaker, Json
from tests.closed import NOVEMBER_MS, closed_session

HOUR_S = 3600


async def sandbox(admin: Client, bot: str = "shop", **policy: object) -> None:
    await admin.ok("POST", "/v1/bots", {"id": bot, "sandbox": True, "policy": policy})


async def post(admin: Client, text: str = "hi", *, user: str = "u", bot: str = "shop", **more: object) -> Json:
    answer: Json = await admin.ok("POST", f"/v1/bots/{bot}/messages", {"user_id": user, "role": "user", "text": text, **more})
    return answer


async def advance(admin: Client, seconds: int, *, bot: str = "shop") -> None:
    await admin.ok("POST", f"/v1/bots/{bot}/clock/advance", {"seconds": seconds})


async def test_a_session_has_one_shape_open_lately_closed_and_archived(admin: Client, worker: Worker) -> None:
    """By its id at every stage of its life; only what the close changed differs."""
    await sandbox(admin)
    answer = await post(admin)
    path = f"/v1/sessions/{answer['session_id']}"
    opened = await admin.ok("GET", path)
    await advance(admin, HOUR_S)
    closed = await admin.ok("GET", path)
    await worker.archivist.run_once()
    archived = await admin.ok("GET", path)
    listed = (await admin.ok("GET", "/v1/sessions"))["sessions"]

    assert (opened["status"], opened["closes_at"]) == ("open", answer["closes_at"])
    assert (closed["status"], closed["closed_at"], closed["reason"]) == ("closed", answer["closes_at"], "inactivity")
    assert closed.keys() == opened.keys()
    assert archived == closed
    assert listed == [closed]
    for view in (opened, closed):
        SessionView.model_validate(view, extra="forbid")


async def test_an_archived_session_is_read_from_postgres_alone(admin: Client, worker: Worker, resources: Resources) -> None:
    """Session, messages and explanation when Redis has forgotten everything."""
    await sandbox(admin)
    answer = await post(admin, metadata={"n": 1})
    await post(admin, "more", intent="buy", language="pt-BR", tags=["x"])
    await advance(admin, HOUR_S)
    await worker.archivist.run_once()
    path = f"/v1/sessions/{answer['session_id']}"
    before = [await admin.ok("GET", path + part) for part in ("", "/messages", "/explanation")]
    for key in [key async for key in resources.redis.scan_iter("adj:{*}:m:*")]:
        await resources.redis.delete(key)
    after = [await admin.ok("GET", path + part) for part in ("", "/messages", "/explanation")]

    assert after == before
    assert [message["text"] for message in after[1]["messages"]] == ["hi", "more"]
    assert after[1]["messages"][0]["metadata"] == {"n": 1}
    assert after[2]["data"]["opened"]["message_id"] == answer["message_id"]


async def test_answers_have_the_fields_of_the_document(admin: Client, worker: Worker) -> None:
    """The models of the OpenAPI document name every field of the domain's JSON, and no other."""
    await sandbox(admin)
    answer = await post(admin)
    shown = closed_session(1)
    described = set(SessionView.model_fields) - {"continuation_of"}

    assert set(session_view(shown.strand, shown.session)) == described
    LivePage.model_validate(await admin.ok("GET", "/v1/bots/shop/live"), extra="forbid")
    MessagePage.model_validate(await admin.ok("GET", f"/v1/sessions/{answer['session_id']}/messages"), extra="forbid")
    await advance(admin, HOUR_S)
    await worker.archivist.run_once()
    SessionPage.model_validate(await admin.ok("GET", "/v1/sessions"), extra="forbid")


async def test_closing_by_api_closes_once(admin: Client, worker: Worker) -> None:
    """Reason `api`; asking again, also when it is archived, shows it and changes nothing."""
    await sandbox(admin)
    answer = await post(admin)
    path = f"/v1/sessions/{answer['session_id']}/close"
    first = await admin.ok("POST", path)
    second = await admin.ok("POST", path)
    await worker.archivist.run_once()
    third = await admin.ok("POST", path)

    assert (first["status"], first["reason"], first["closing_rule"]) == ("closed", "api", "K20")
    assert first == second == third
    assert (await post(admin))["session"] == "opened"


async def test_closing_an_earlier_session_leaves_the_present_one_open(admin: Client) -> None:
    """A close names a session, not a conversation."""
    await sandbox(admin)
    earlier = await post(admin)
    await advance(admin, HOUR_S)
    present = await post(admin)
    shown = await admin.ok("POST", f"/v1/sessions/{earlier['session_id']}/close")

    assert shown["reason"] == "inactivity"
    assert (await admin.ok("GET", f"/v1/sessions/{present['session_id']}"))["status"] == "open"


async def test_filters_find_what_they_say(admin: Client, resources: Resources) -> None:
    """Each by its own name; an instant `from` is included, one `to` is not; an unescaped plus is understood."""
    one = closed_session(1, bot="shop", channel="sms", interactive=True, developer=True, reason="api", conversation="c1")
    two = closed_session(2, bot="bank", opened_at_ms=NOVEMBER_MS + 10_000_000)
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots", {"id": "bank"})
    async with resources.engine.begin() as conn:
        await insert_closed(conn, [one, two])
    for query, found in (
        ("bot=shop", one),
        ("user_id=user-2", two),
        ("channel=sms", one),
        ("conversation_id=c1", one),
        ("reason=inactivity", two),
        ("interactive=true", one),
        ("developer=false", two),
        ("opened_from=2026-11-16T00:10:00Z", two),
        ("opened_to=2026-11-16T01:10:00+01:00", one),
        ("closed_from=2026-11-16T00:15:01.001Z", two),
        ("closed_to=2026-11-16T00:15:01.001Z", one),
        ("opened_from=2026-11-16T00:00:01Z&opened_to=2026-11-16T00:00:01.001Z", one),
    ):
        sessions = (await admin.ok("GET", f"/v1/sessions?{query}"))["sessions"]
        assert [session["id"] for session in sessions] == [found.session.id], query
    assert (await admin.ok("GET", "/v1/sessions?opened_to=2026-11-16T00:00:01Z"))["sessions"] == []


async def test_a_walk_meets_every_session_once_while_others_are_archived(admin: Client, resources: Resources) -> None:
    """Two hundred sessions, many of one millisecond, in pages of nine, with new ones written all the time."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    batch = [closed_session(at, opened_at_ms=NOVEMBER_MS - (at // 7) * 86_400_000) for at in range(200)]
    async with resources.engine.begin() as conn:
        await insert_closed(conn, batch)
    walking = True

    async def write() -> None:
        at = 1000
        while walking:
            async with resources.engine.begin() as conn:
                await insert_closed(conn, [closed_session(at, opened_at_ms=NOVEMBER_MS + at)])
            at += 1

    writing = asyncio.create_task(write())
    seen, cursor = [], None
    while True:
        page = await admin.ok("GET", "/v1/sessions", params={"bot": "shop", "limit": 9} | ({"cursor": cursor} if cursor else {}))
        seen += [session["id"] for session in page["sessions"]]
        cursor = page["next"]
        if cursor is None:
            break
    walking = False
    await writing

    before = {closed.session.id for closed in batch}
    assert len(seen) == len(set(seen))
    assert before <= set(seen)
    assert seen == sorted(seen, reverse=True)


async def test_a_cursor_is_good_for_its_own_list_alone(admin: Client, resources: Resources) -> None:
    """With other filters, of another list, cut short, made up: 422 by its name."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    async with resources.engine.begin() as conn:
        await insert_closed(conn, [closed_session(at) for at in range(3)])
    cursor = (await admin.ok("GET", "/v1/sessions?limit=1"))["next"]
    assert (await admin.ok("GET", f"/v1/sessions?limit=2&cursor={cursor}"))["next"] is None

    for path in (
        f"/v1/sessions?bot=shop&cursor={cursor}",
        f"/v1/conversations/web:user-1/sessions?cursor={cursor}",
        f"/v1/bots/shop/live?cursor={cursor}",
        f"/v1/keys?cursor={cursor}",
        f"/v1/sessions?cursor={cursor[:-3]}",
        "/v1/sessions?cursor=AAAA",
        "/v1/sessions?cursor=%00",
        "/v1/sessions?cursor=",
        "/v1/sessions?cursor=%C3%BC",
    ):
        problem = await admin.refused("GET", path)
        assert (problem["status"], problem["errors"][0]["where"]) == (422, "cursor"), path


async def test_a_page_of_messages_ends_by_its_bytes(admin: Client) -> None:
    """Six messages of 900 KB are two pages; a thousand of them would be one answer of 900 MB."""
    await sandbox(admin)
    answers = [await post(admin, "hi", metadata={"long": "x" * 900_000}) for _ in range(6)]
    path = f"/v1/sessions/{answers[0]['session_id']}/messages"

    first = await admin.ok("GET", path)
    second = await admin.ok("GET", path, params={"cursor": first["next"]})

    assert [message["sequence"] for message in first["messages"]] == [1, 2, 3, 4]
    assert [message["sequence"] for message in second["messages"]] == [5, 6]
    assert second["next"] is None


async def test_messages_are_walked_in_order_live_and_archived(admin: Client, worker: Worker) -> None:
    """Seven messages by pages of three; every one once, in the order of its sequence."""
    await sandbox(admin)
    answers = [await post(admin, f"text {at}") for at in range(7)]
    path = f"/v1/sessions/{answers[0]['session_id']}/messages"

    async def walk() -> list[int]:
        walked, cursor = [], None
        while True:
            page = await admin.ok("GET", path, params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
            walked += [message["sequence"] for message in page["messages"]]
            cursor = page["next"]
            if cursor is None:
                return walked

    live = await walk()
    await advance(admin, HOUR_S)
    await worker.archivist.run_once()

    assert live == await walk() == [1, 2, 3, 4, 5, 6, 7]


async def test_open_sessions_are_told_with_their_deadlines(admin: Client) -> None:
    """The longest open first, by pages; how many there are; none that is closed."""
    await sandbox(admin, inactivity_minutes=60)
    opened = []
    for at in range(5):
        opened.append((await post(admin, user=f"user-{at}"))["session_id"])
        await advance(admin, 60)
    await admin.ok("POST", f"/v1/sessions/{opened[2]}/close")
    first = await admin.ok("GET", "/v1/bots/shop/live?limit=3")
    rest = await admin.ok("GET", f"/v1/bots/shop/live?limit=3&cursor={first['next']}")

    assert (first["open"], rest["next"]) == (4, None)
    shown = first["sessions"] + rest["sessions"]
    assert [session["id"] for session in shown] == [opened[0], opened[1], opened[3], opened[4]]
    assert all(session["closes_at"] > session["opened_at"] and session["closed_at"] is None for session in shown)


async def test_a_conversation_is_told_whole_at_every_moment(admin: Client, worker: Worker) -> None:
    """The open session, the one that closed just now, the archived ones: each once, the latest first."""
    await sandbox(admin)
    sessions: list[str] = []
    for _ in range(3):
        sessions.insert(0, (await post(admin))["session_id"])
        assert await conversation(admin) == sessions
        await advance(admin, HOUR_S)
        assert await conversation(admin) == sessions
        await worker.archivist.run_once()
        assert await conversation(admin) == sessions
    assert await conversation(admin, bot=None) == sessions


async def conversation(admin: Client, *, bot: str | None = "shop") -> list[str]:
    params = {} if bot is None else {"bot": bot}
    page = await admin.ok("GET", "/v1/conversations/web:u/sessions", params=params)
    return [session["id"] for session in page["sessions"]]


async def test_a_conversation_with_several_open_sessions_tells_them_all(admin: Client) -> None:
    """Method `client`: two threads side by side."""
    await sandbox(admin, method="client")
    ids = {(await post(admin, client_session_id=thread))["session_id"] for thread in ("a", "b")}

    assert set(await conversation(admin)) == ids


async def test_a_deleted_bots_sessions_stay_readable(admin: Client, worker: Worker) -> None:
    """By id and by the bot's name."""
    await sandbox(admin)
    answer = await post(admin)
    await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close")
    await worker.archivist.run_once()
    await admin.ok("DELETE", "/v1/bots/shop")

    assert (await admin.ok("GET", f"/v1/sessions/{answer['session_id']}"))["bot"] == "shop"
    assert len((await admin.ok("GET", "/v1/sessions?bot=shop"))["sessions"]) == 1
    assert (await admin.refused("GET", "/v1/sessions?bot=never"))["status"] == 404


async def test_a_read_key_reads_and_configures_nothing(admin: Client, clients: ClientMaker) -> None:
    """Sessions, yes; bots, no; entries, no."""
    await sandbox(admin)
    reader = await clients("read", bots=["shop"])
    answer = await post(admin)

    await reader.ok("GET", f"/v1/sessions/{answer['session_id']}")
    assert (await reader.refused("GET", "/v1/bots/shop"))["status"] == 403
    assert (await reader.refused("POST", "/v1/bots/shop/messages", {"user_id": "u", "role": "user"}))["status"] == 403


async def test_a_deleted_sandbox_bot_leaves_no_session_open(admin: Client) -> None:
    """Its clock stands still, so it is moved past the last deadline: its sessions close at their own deadlines."""
    await sandbox(admin)
    answer = await post(admin)
    await admin.ok("DELETE", "/v1/bots/shop")
    shown = await admin.ok("GET", f"/v1/sessions/{answer['session_id']}")

    assert (shown["reason"], shown["closed_at"]) == ("inactivity", answer["closes_at"])


async def test_a_session_opened_while_its_sandbox_bot_is_deleted_closes_too(
    admin: Client, worker: Worker, resources: Resources
) -> None:
    """By a process that has not heard of it yet: a worker lets the clock run out once more, and nothing stays behind."""
    await sandbox(admin)
    await post(admin)
    await admin.ok("DELETE", "/v1/bots/shop")
    late = Receive(Entry(user_id="late", role="user"), "late")
    await resources.ledger.submit(Strand("shop", "web:late"), late, at_ms=await resources.sandboxes.stored_ms("shop"))
    assert (await worker.consistency.totals()).open == 1

    await worker.repair()
    await worker.archivist.run_once()

    account = await worker.consistency.totals()
    assert (account.opened, account.closed, account.open, account.unaccounted) == (2, 2, 0, 0)
    assert [each["reason"] for each in (await admin.ok("GET", "/v1/sessions?bot=shop"))["sessions"]] == ["inactivity"] * 2


async def test_what_closes_after_its_bot_is_deleted_is_archived_and_told_to_nobody(admin: Client, worker: Worker) -> None:
    """Its endpoints went with it; lists and the account know of it all the same, `/live` and `/summary` do not."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/"})
    answer = await post(admin)
    await admin.ok("DELETE", "/v1/bots/shop")
    assert (await worker.consistency.totals()).open == 1

    assert (await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close"))["status"] == "closed"
    await worker.archivist.run_once()
    await worker.jobs()["deliver"][0]()

    account = await worker.consistency.totals()
    assert (account.open, account.pending, account.unaccounted) == (0, 0, 0)
    assert [each["id"] for each in (await admin.ok("GET", "/v1/sessions?bot=shop"))["sessions"]] == [answer["session_id"]]
    assert (await admin.ok("GET", "/v1/deliveries"))["deliveries"] == []
    for path in ("/v1/bots/shop/live", "/v1/bots/shop/summary"):
        assert (await admin.refused("GET", path))["status"] == 404


async def test_a_deleted_bots_open_sessions_keep_their_policy(admin: Client, worker: Worker, resources: Resources) -> None:
    """They stay open until their deadline under the policy that the bot had last."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": {"inactivity_minutes": 20}})
    answer = await post(admin)
    await admin.ok("DELETE", "/v1/bots/shop")
    await worker.sweep()
    assert (await admin.ok("GET", f"/v1/sessions/{answer['session_id']}"))["status"] == "open"
    known = resources.config.bot_or_deleted("shop")
    assert known is not None
    assert known.rules.policy.policy.inactivity_minutes == 20
