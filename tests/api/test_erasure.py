"""A user is exported whole, and erased everywhere, exactly, whatever crashes meanwhile; nothing comes back."""

import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest
from msgspec import json, msgpack
from sqlalchemy import text

from app.archive import rejects
from app.archive.erasures import digest_of
from app.closing import erasure
from app.closing.rejects import RejectedRecord
from app.live.keys import events
from app.queries.user_export import ExportLine, UserExport
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client
from tests.api.test_transcripts import everything

ANN = "ann/44-secret"
TRACES = ("44-secret", "sesame", "+5491100")
STEPS = ("erase.after_begin", "erase.after_close", "erase.after_rows", "erase.after_redis")


def places(stored: str, trace: str) -> list[str]:
    """Where a trace stands, with what is around it."""
    return [stored[max(0, found.start() - 150) : found.end() + 150] for found in re.finditer(re.escape(trace), stored)]


class Crash(Exception):
    """Stands for a kill: the transaction under way is rolled back, and nothing after it runs."""


async def say(admin: Client, user: str, channel: str, **more: Any) -> Any:  # noqa: ANN401 - an answer
    entry = {"user_id": user, "role": "user", "channel": channel, "text": f"open sesame {user}", "intent": "open"}
    return await admin.ok("POST", "/v1/bots/shop/messages", entry | {"session_metadata": {"phone": "+5491100"}} | more)


async def live_through(admin: Client, worker: Worker, user: str) -> None:
    """An archived session with a delivery, a closed one on its way, an open one, a variable, an entry without a session."""
    await admin.ok("PUT", f"/v1/bots/shop/users/{user}/variables/code", {"value": "sesame"})
    await say(admin, user, "sms", type="survey.sent", role="bot")
    for channel in ("web", "whatsapp"):
        answer = await say(admin, user, channel)
        await say(admin, user, channel, role="bot")
        await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close")
        if channel == "web":
            await worker.archivist.run_once()
    await say(admin, user, "telegram")


@pytest.fixture
async def lives(admin: Client, worker: Worker) -> None:
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/"})
    for user in (ANN, "bob"):
        await live_through(admin, worker, user)


async def erased(admin: Client, worker: Worker, path: str) -> Any:  # noqa: ANN401 - a receipt
    for _ in range(5):
        await worker.archivist.run_once()
        await worker.erasure.run_once()
    return await admin.ok("GET", path)


async def requested(admin: Client) -> str:
    reply = await admin.delete(f"/v1/bots/shop/users/{ANN}")
    assert reply.status_code == 202, reply.text
    assert reply.json()["state"] == "pending"
    return str(reply.headers["location"])


async def statistics(admin: Client) -> Any:  # noqa: ANN401 - a summary
    return await admin.ok("GET", "/v1/bots/shop/summary")


@pytest.mark.usefixtures("lives")
async def test_nothing_of_an_erased_user_is_left_but_the_receipt(admin: Client, worker: Worker, resources: Resources) -> None:
    """Neither in Redis nor in Postgres; another user's data is untouched, and the sums are what they were."""
    views = {"one": {"user_id": ANN}, "two": {"bot": "shop", "conversation_id": f"web:{ANN}"}, "other": {"user_id": "bob"}}
    for name, query in views.items():
        await admin.ok("PUT", f"/v1/saved-views/{name}", {"query": urlencode(query)})
    path = await requested(admin)
    before = await everything(resources)
    await say(admin, "bob", "telegram")
    receipt = await erased(admin, worker, path)
    after = await everything(resources)
    sums = await statistics(admin)
    bob = await admin.ok("GET", "/v1/bots/shop/users/bob/sessions")
    ann = await admin.ok("GET", f"/v1/bots/shop/users/{ANN}/sessions")

    assert all(trace in before for trace in TRACES)
    assert places(after, "44-secret") == places(after, "open sesame ann") == []
    assert receipt["state"] == "done"
    assert receipt["counts"] == {
        "sessions": 2, "messages": 4, "deliveries": 2, "unassigned_entries": 1, "rejects": 0, "variables": 1, "saved_views": 2
    }  # fmt: skip
    assert (sums["sessions"], ann["sessions"]) == (5, [])
    assert len(bob["sessions"]) == 3
    assert [one["name"] for one in (await admin.ok("GET", "/v1/saved-views"))["views"]] == ["other"]
    assert (await admin.ok("GET", "/v1/bots/shop/erasures"))["erasures"] == [receipt]
    (entry, *_) = (await admin.ok("GET", "/v1/audit"))["entries"]
    assert (entry["action"], entry["target"]) == ("user.erased", receipt["id"])


def values(answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - an answer
    metrics = [group["metrics"] for group in answer["groups"]]
    return [{name: {**metric, "sessions_url": ""} for name, metric in each.items()} for each in metrics]


@pytest.mark.usefixtures("lives")
async def test_statistics_are_what_they_were(admin: Client, worker: Worker) -> None:
    """Sessions, users, conversations and outcomes are counted as before, though nobody can tell whose they were."""
    asked = {"group_by": "channel", "metrics": "sessions,users,conversations,contained,billing_sessions"}
    for channel in ("whatsapp", "telegram"):
        found = [
            one for one in (await admin.ok("GET", f"/v1/bots/shop/users/{ANN}/sessions"))["sessions"] if one["channel"] == channel
        ]
        await admin.ok("POST", f"/v1/sessions/{found[0]['id']}/close")
    await worker.archivist.run_once()
    before = await statistics(admin), values(await admin.ok("GET", "/v1/analytics/sessions", params=asked))
    await erased(admin, worker, await requested(admin))
    after = await statistics(admin), values(await admin.ok("GET", "/v1/analytics/sessions", params=asked))

    assert after == before
    assert before[1][0]["users"]["value"] == 2


@pytest.mark.usefixtures("lives")
@pytest.mark.parametrize("step", STEPS)
async def test_a_crash_after_any_step_leaves_nothing_out(
    admin: Client, worker: Worker, resources: Resources, monkeypatch: pytest.MonkeyPatch, *, step: str
) -> None:
    """The next run goes on, and the counts are those of an erasure without a crash."""
    path = await requested(admin)

    def crash(name: str) -> None:
        if name == step:
            raise Crash

    with monkeypatch.context() as armed:
        armed.setattr(erasure, "failpoint", crash)
        with pytest.raises(Crash):
            await erased(admin, worker, path)
    receipt = await erased(admin, worker, path)
    after = await everything(resources)

    assert receipt["state"] == "done"
    assert receipt["counts"]["sessions"] in {1, 2}  # the other one was archived without the user
    assert places(after, "44-secret") == places(after, "open sesame ann") == []


@pytest.mark.usefixtures("lives")
async def test_an_older_state_of_redis_brings_nothing_back(admin: Client, worker: Worker, resources: Resources) -> None:
    """Redis loses what came after the request; the session that is open again closes and is archived without its user."""
    redis: Any = resources.redis
    snapshot = [(key, await redis.dump(key)) async for key in redis.scan_iter()]
    await erased(admin, worker, await requested(admin))
    await redis.flushdb()
    for key, value in snapshot:
        await redis.restore(key, 0, value)
    await say(admin, ANN, "telegram", text="still sesame")
    await admin.ok("POST", f"/v1/bots/shop/users/{ANN}/close")
    await worker.archivist.run_once()
    async with resources.engine.connect() as conn:
        tables = await conn.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        rows = [str((await conn.execute(text(f'SELECT * FROM "{table}"'))).all()) for table in tables.all()]  # noqa: S608 - its own

    assert "44-secret" not in str(rows)
    assert "still sesame" not in str(rows)


@pytest.mark.usefixtures("lives")
async def test_a_session_that_opens_after_the_request_is_kept(admin: Client, worker: Worker, resources: Resources) -> None:
    """The user may come back at any time, also before the worker is done."""
    path = await requested(admin)
    answer = await say(admin, ANN, "messenger", text="back again")
    await erased(admin, worker, path)
    kept = await admin.ok("GET", f"/v1/sessions/{answer['session_id']}")

    assert (kept["user_id"], kept["status"]) == (ANN, "open")
    assert "open sesame ann" not in await everything(resources)


@pytest.mark.usefixtures("lives")
async def test_rejected_records_are_erased_too(admin: Client, worker: Worker, resources: Resources) -> None:
    """They hold transcripts; those of other users stay."""
    redis: Any = resources.redis
    answer = await say(admin, ANN, "line")
    await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close")
    raw = [value for shard in range(4) for _, fields in await redis.xrange(events(shard)) for value in fields.values()]
    async with resources.engine.begin() as conn:
        for each in raw:
            await rejects.add(conn, bot="shop", session_id=None, error="x", payload=msgpack.encode(RejectedRecord(0, each, {})))
    receipt = await erased(admin, worker, await requested(admin))
    left = (await admin.ok("GET", "/v1/rejects"))["rejects"]

    assert receipt["counts"]["rejects"] > 0
    assert len(left) == len(raw) - receipt["counts"]["rejects"]
    assert "44-secret" not in await everything(resources)


async def exported(admin: Client, user: str) -> dict[str, list[Any]]:
    """The lines of a user's export, by kind."""
    reply = await admin.get(f"/v1/bots/shop/users/{user}/export")
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    found: dict[str, list[Any]] = {}
    for line in reply.content.splitlines():
        found.setdefault(json.decode(line)["kind"], []).append(json.decode(line))
    return found


@pytest.mark.usefixtures("lives")
async def test_an_export_has_all_that_is_kept_of_a_user(
    admin: Client, worker: Worker, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Live, on its way to the archive and archived, over several pages, each thing once; nothing of another user."""
    for module, name in (("exports", "_SESSIONS_A_PAGE"), ("exports", "_MESSAGES_A_PAGE"), ("user_export", "_DELIVERIES_A_PAGE")):
        monkeypatch.setattr(f"app.queries.{module}.{name}", 1)
    redis: Any = resources.redis
    waiting = await say(admin, ANN, "line")
    await admin.ok("POST", f"/v1/sessions/{waiting['session_id']}/close")
    for user in (ANN, "bob"):
        await say(admin, user, "viber", type="survey.sent", role="bot")
    await admin.ok("PUT", f"/v1/bots/shop/conversations/telegram:{ANN}/variables/color", {"value": "blue"})
    raw = [value for shard in range(4) for _, fields in await redis.xrange(events(shard)) for value in fields.values()]
    async with resources.engine.begin() as conn:
        for each in raw:
            await rejects.add(conn, bot="shop", session_id=None, error="x", payload=msgpack.encode(RejectedRecord(0, each, {})))
    before = await exported(admin, ANN)
    await worker.archivist.run_once()
    after = await exported(admin, ANN)

    for found in (before, after):
        assert sorted((one["channel"], one["status"]) for one in found["session"]) == [
            ("line", "closed"), ("telegram", "open"), ("web", "closed"), ("whatsapp", "closed")
        ]  # fmt: skip
        assert len({one["id"] for one in found["session"]}) == 4
        assert len({(one["session_id"], one["sequence"]) for one in found["message"]}) == len(found["message"]) == 6
        assert [one["reason"] for one in found["unassigned_entry"]] == ["no_session", "no_session"]
        assert [(one["name"], one["value"]) for one in found["variable"]] == [("code", "sesame")]
        assert "blue" in {one["value"] for each in found["conversation"] for one in each["variables"].values()}
        assert 0 < len(found["reject"]) < len(raw)
        assert "bob" not in str(found)
    assert [len(found["delivery"]) for found in (before, after)] == [2, 3]
    assert after["delivery"][0]["payload"]["data"]["session"]["user_id"] == ANN


@pytest.mark.usefixtures("lives")
async def test_an_export_misses_nothing_that_is_archived_meanwhile(
    admin: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at Redis and that at Postgres everything moves from one to the other: each thing is there, and once."""
    waiting = await say(admin, ANN, "line")
    await admin.ok("POST", f"/v1/sessions/{waiting['session_id']}/close")
    await say(admin, ANN, "viber", type="survey.sent", role="bot")
    archived_sessions = UserExport._archived_sessions

    async def after_the_archivist(export: UserExport) -> AsyncIterator[list[ExportLine]]:
        await worker.archivist.run_once()
        async for lines in archived_sessions(export):
            yield lines

    before = await exported(admin, ANN)
    monkeypatch.setattr(UserExport, "_archived_sessions", after_the_archivist)
    meanwhile = await exported(admin, ANN)

    sent = [one["id"] for one in meanwhile["delivery"]]
    assert len(sent) == len(set(sent)) > len(before["delivery"])
    names = {"session": "id", "message": "message_id", "unassigned_entry": "message"}
    for kind, name in names.items():
        assert sorted(str(one[name]) for one in meanwhile[kind]) == sorted(str(one[name]) for one in before[kind]), kind


async def test_an_export_has_the_conversations_in_which_the_user_was_last(admin: Client, worker: Worker) -> None:
    """A conversation that the bot names may have several users: its dialog is that of the last one."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for user, conversation in ((ANN, "desk"), ("bob", "desk"), ("bob", "till"), (ANN, "till")):
        answer = await say(admin, user, "web", conversation_id=conversation)
        await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close")
        await worker.archivist.run_once()
    found = await exported(admin, ANN)

    assert [one["conversation_id"] for one in found["conversation"]] == ["till"]
    assert {one["conversation_id"] for one in found["session"]} == {"desk", "till"}


async def test_an_export_has_the_webhooks_of_open_sessions(admin: Client, worker: Worker) -> None:
    """Webhooks of events before the close are exported, and once also where Postgres has the session by then."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    hook = {"url": "http://127.0.0.1:9999/", "events": ["session.opened", "session.closed"]}
    await admin.ok("POST", "/v1/bots/shop/endpoints", hook)
    answer = await say(admin, ANN, "web")
    await say(admin, "bob", "web")
    await admin.ok("POST", "/v1/bots", {"id": "bank"})
    await admin.ok("POST", "/v1/bots/bank/messages", {"user_id": ANN, "role": "user", "type": "survey.sent"})
    await admin.ok("POST", "/v1/bots/bank/messages", {"user_id": ANN, "role": "user"})
    waiting = await exported(admin, ANN)
    await worker.archivist.run_once()
    while_open = await exported(admin, ANN)
    await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close")
    await worker.archivist.run_once()
    closed = await exported(admin, ANN)

    sent = [sorted((one["event"], one["session_id"]) for one in found["delivery"]) for found in (while_open, closed)]
    opened = ("session.opened", answer["session_id"])
    assert sent == [[opened], [("session.closed", answer["session_id"]), opened]]
    assert [len(found["session"]) for found in (waiting, while_open, closed)] == [1, 1, 1]
    assert "unassigned_entry" not in waiting


@pytest.mark.usefixtures("lives")
async def test_an_export_of_an_erased_user_is_empty(admin: Client, worker: Worker) -> None:
    await erased(admin, worker, await requested(admin))

    assert await exported(admin, ANN) == {}


@pytest.mark.usefixtures("lives")
async def test_exports_are_in_the_audit_log_without_the_user(admin: Client) -> None:
    """The key, the bot and the time; a user's id would stay there after an erasure."""
    await exported(admin, ANN)
    for path in ("/v1/exports/sessions", "/v1/exports/messages"):
        assert (await admin.get(path, params={"bot": "shop", "user_id": ANN})).status_code == 200
    entries = (await admin.ok("GET", "/v1/audit", params={"bot": "shop"}))["entries"][:3]

    assert [one["action"] for one in entries] == ["messages.exported", "sessions.exported", "user.exported"]
    assert entries[0]["detail"] == {"format": "ndjson", "filters": ["bot", "user_id"]}
    assert entries[2]["target"] == digest_of("shop", ANN).hex()
    assert "44-secret" not in str(entries)


async def test_an_erasure_is_requested_once_at_a_time(admin: Client) -> None:
    """A repeat of the request is answered with the erasure that is under way; another bot's is not found."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots", {"id": "bank"})
    first, second = await requested(admin), await requested(admin)

    assert first == second
    assert (await admin.refused("GET", first.replace("shop", "bank")))["status"] == 404
    assert (await admin.refused("GET", "/v1/bots/shop/erasures/x"))["status"] == 404
