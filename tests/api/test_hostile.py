"""Careless and hostile requests are refused, each by itself, and change nothing for other callers."""

import gzip
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from fastapi import FastAPI

from app.clock import wall_ms
from app.domain.instants import rfc3339
from app.live.sandbox import AHEAD_MS
from app.worker import Worker
from tests.api.conftest import Client, Json

FAR = ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59-14:00", "2100-01-01T00:00:00.001Z")
LONG_AGO = ("0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00Z", "1985-01-01T00:00:00Z")


def faults(problem: Json) -> list[str]:
    """Where a refusal says that something is wrong."""
    return [fault["where"] for fault in problem["errors"]]


@pytest.mark.parametrize("far", FAR + LONG_AGO)
async def test_no_entry_takes_a_sandbox_clock_out_of_the_calendar(admin: Client, far: str) -> None:
    """It is refused alone, its neighbours are taken, and the bot's sessions can still be listed."""
    await admin.ok("POST", "/v1/bots", {"id": "box", "sandbox": True, "clock_mode": "sent_at"})
    entries = [{"user_id": user, "role": "user", "sent_at": at} for user, at in (("a", far), ("b", "2026-11-21T10:00:00Z"))]

    refused = await admin.refused("POST", "/v1/bots/box/messages", entries[0])
    batch = await admin.ok("POST", "/v1/bots/box/messages/batch", entries)

    assert faults(refused) == ["sent_at"]
    assert (batch["accepted"], batch["refused"]) == (1, 1)
    assert faults(batch["answers"][0]["error"]) == ["sent_at"]
    assert (await admin.ok("GET", "/v1/bots/box/clock"))["now"] == "2026-11-21T10:00:00.000Z"
    assert [session["user_id"] for session in (await admin.ok("GET", "/v1/bots/box/live"))["sessions"]] == ["b"]


async def test_a_sandbox_clock_goes_no_further_than_it_may(admin: Client) -> None:
    """By either way of moving it; at its end entries are taken, and sessions close, as ever."""
    await admin.ok("POST", "/v1/bots", {"id": "box", "sandbox": True})
    advance = "/v1/bots/box/clock/advance"
    end_ms = wall_ms() + AHEAD_MS - 60_000
    for far in FAR:
        assert faults(await admin.refused("POST", advance, {"to": far})) == ["to"]
    assert (await admin.ok("POST", advance, {"to": rfc3339(end_ms)}))["now"] == rfc3339(end_ms)
    assert faults(await admin.refused("POST", advance, {"seconds": 600})) == ["seconds"]

    answer = await admin.ok("POST", "/v1/bots/box/messages", {"user_id": "a", "role": "user"})

    assert answer["closes_at"] == rfc3339(end_ms + 900_000)
    assert (await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close"))["reason"] == "api"


async def test_a_clock_that_follows_entries_begins_with_one_that_was_sent(admin: Client) -> None:
    """Until a `sent_at`, or an admin, has set the clock, an entry without one is refused with the reason."""
    await admin.ok("POST", "/v1/bots", {"id": "box", "sandbox": True, "clock_mode": "sent_at"})
    timeless = {"user_id": "a", "role": "user"}

    (fault,) = (await admin.refused("POST", "/v1/bots/box/messages", timeless))["errors"]
    assert (fault["where"], fault["hint"]) == ("sent_at", "add it, or set the clock by `clock/advance`")
    assert faults(await admin.refused("POST", "/v1/bots/box/clock/advance", {"seconds": 60})) == ["seconds"]
    batch = await admin.ok(
        "POST", "/v1/bots/box/messages/batch", [timeless, timeless | {"sent_at": "2026-11-21T10:00:00Z"}, timeless]
    )

    assert faults(batch["answers"][0]["error"]) == ["sent_at"]
    assert [answer["received_at"] for answer in batch["answers"][1:]] == ["2026-11-21T10:00:00.000Z"] * 2


async def test_what_was_sent_before_the_clock_moves_nothing(admin: Client) -> None:
    """However long before: it is kept, and happens where the clock stands."""
    await admin.ok("POST", "/v1/bots", {"id": "box", "sandbox": True, "clock_mode": "sent_at"})
    await admin.ok("POST", "/v1/bots/box/clock/advance", {"to": "2026-11-21T10:00:00Z"})

    for at in LONG_AGO:
        answer = await admin.ok("POST", "/v1/bots/box/messages", {"user_id": "a", "role": "user", "sent_at": at})
        assert answer["received_at"] == "2026-11-21T10:00:00.000Z"


async def test_a_time_that_no_clock_shows_is_kept_all_the_same(admin: Client, worker: Worker) -> None:
    """`sent_at` moves nothing of a bot in real time, so a device's wrong clock costs no message."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    entries = [
        {"user_id": "a", "role": "user", "sent_at": at} for at in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00")
    ]
    answers = (await admin.ok("POST", "/v1/bots/shop/messages/batch", entries))["answers"]
    path = f"/v1/sessions/{answers[0]['session_id']}"
    before = (await admin.ok("GET", f"{path}/messages"))["messages"]
    await admin.ok("POST", f"{path}/close")
    await worker.archivist.run_once()

    assert [message["sent_at"] for message in before] == ["9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z"]
    assert len((await admin.ok("GET", f"{path}/messages"))["messages"]) == 2


@pytest.mark.parametrize("field", ("user_id", "message_id", "conversation_id", "client_session_id", "window_id", "in_reply_to"))
@pytest.mark.parametrize("control", ("\n", "\r\n", "\x00", "\x1f", "\x7f"))
async def test_no_id_ends_in_a_control_character(admin: Client, field: str, control: str) -> None:
    """Its session could not be asked for: no route takes such an id."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    entry = {"user_id": "a", "role": "user", field: f"x{control}"}

    assert faults(await admin.refused("POST", "/v1/bots/shop/messages", entry)) == [field]


@pytest.mark.parametrize(("field", "value"), (("channel", "web\n"), ("language", "en\n")))
async def test_no_name_ends_in_a_line_break(admin: Client, field: str, value: str) -> None:
    """Channels and languages are compared with those of the policy."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    entry = {"user_id": "a", "role": "user", field: value}

    assert faults(await admin.refused("POST", "/v1/bots/shop/messages", entry)) == [field]


async def test_what_could_not_be_read_again_is_not_taken(admin: Client) -> None:
    """Depth that one reader of JSON accepts and the next does not, where it would break every look at the conversation."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    deep: list[object] = []
    for _ in range(400):
        deep = [deep]
    entries = [{"user_id": "a", "role": "user", field: {"deep": deep}} for field in ("context", "metadata")]
    entries.append({"user_id": "a", "role": "user"})

    batch = await admin.ok("POST", "/v1/bots/shop/messages/batch", entries)

    assert [faults(answer["error"]) for answer in batch["answers"][:2]] == [["context"], ["metadata"]]
    assert batch["answers"][2]["sequence"] == 1
    assert (await admin.ok("GET", "/v1/bots/shop/conversations/web:a/context"))["context"] is None


@pytest.mark.parametrize("value", (r'"\ud800"', r'{"\ud800": 1}', "NaN", "1e400", "9" * 40, "[" * 400 + "]" * 400))
async def test_a_variable_that_cannot_be_kept_is_refused(admin: Client, value: str) -> None:
    """Once and for all, not with 503: a repeat cannot succeed."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    path = "/v1/bots/shop/conversations/web:a/variables/x"
    body = f'{{"value": {value}}}'

    reply = await admin.put(path, content=body, headers={"content-type": "application/json"})

    assert (reply.status_code, faults(reply.json())) == (422, ["value"])
    assert (await admin.get(path)).status_code == 404


async def test_a_refused_entry_names_every_fault(admin: Client) -> None:
    """Where it is wrong, what is wrong and how to correct it, of one entry and of each in a batch."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    entry = {"user_id": "", "rle": "user", "metadata": {"n": 2**70}}

    alone = await admin.refused("POST", "/v1/bots/shop/messages", entry)
    batch = await admin.ok("POST", "/v1/bots/shop/messages/batch", [entry, {"user_id": "a", "role": "user"}])

    assert [fault["where"] for fault in alone["errors"]] == ["user_id", "rle", "role", "metadata"]
    assert all(fault["what"] and fault["hint"] for fault in alone["errors"])
    assert batch["answers"][0]["error"]["errors"] == alone["errors"]
    assert batch["answers"][1]["sequence"] == 1


async def test_an_empty_batch_did_nothing(admin: Client) -> None:
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    assert await admin.ok("POST", "/v1/bots/shop/messages/batch", []) == {"accepted": 0, "refused": 0, "answers": []}


GOOD = b'{"user_id": "a", "role": "user"}'


@pytest.mark.parametrize(
    "bad",
    (
        rb'{"user_id": "a", "role": "user", "text": "cut \ud83d"}',
        b'{"user_id": "a", "role": "user", "text": "\xff"}',
        b'{"user_id": "a", "role": "user", "metadata": {"n": NaN}}',
        b'{"user_id": "a", "role": "user", "metadata": {"n": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
        b'{"user_id": "a", "role": "user", "text": "said "hi""}',
        rb'{"user_id": "a", "role": "user", "text": "],[\"{\\", "x": tru}',
    ),
)
async def test_one_broken_entry_fails_alone(admin: Client, bad: bytes) -> None:
    """Also where no JSON reader reads the array: half a character must not hold up 499 messages for ever."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    reply = await admin.post("/v1/bots/shop/messages/batch", content=b"[" + GOOD + b"," + bad + b", " + GOOD + b"]")
    answers = reply.json()["answers"]

    assert [answer.get("sequence") for answer in answers] == [1, None, 2]
    assert answers[1]["error"]["status"] == 422


@pytest.mark.parametrize(
    "body",
    (
        b"[" + GOOD,
        b"[" + GOOD + b",]",
        b"[" + GOOD + b"}]",
        b"[{" + GOOD + b"]",
        b"[" + GOOD + b', {"user_id": "5" tall"}, "]',
        b"[" * 30_000,
        GOOD,
    ),
)
async def test_a_broken_batch_fails_as_a_whole(admin: Client, body: bytes) -> None:
    """If it is uncertain where its entries begin and end, none is accepted."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    reply = await admin.post("/v1/bots/shop/messages/batch", content=body)

    assert (reply.status_code, faults(reply.json())) == (422, ["body"])
    assert (await admin.ok("GET", "/v1/bots/shop/live"))["open"] == 0


async def test_a_batch_too_long_is_refused_however_it_is_broken(admin: Client) -> None:
    """The limit holds before any entry is looked at."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    for body in (
        b"[" + b",".join([GOOD] * 501) + b"]",
        b"[" + b",".join([b"NaN"] * 501) + b"]",
        b"[" * 400_000,
        b"[" + b"[]" * 400_000 + b"]",
    ):
        assert (await admin.post("/v1/bots/shop/messages/batch", content=body)).status_code == 413


@pytest.mark.parametrize("path", ("/v1/bots/shop/messages", "/v1/bots/shop/messages/batch"))
@pytest.mark.parametrize("method", ("GET", "PUT", "DELETE", "HEAD", "OPTIONS"))
async def test_entries_are_posted(admin: Client, path: str, method: str) -> None:
    """Another method is answered with the allowed one, not with 404."""
    reply = await admin.request(method, path)

    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ("/v1/bots/shop/messages", "/v1/bots/shop/messages/batch", "/v1/policies/validate", "/v1/bots"))
async def test_a_body_of_the_wrong_kind_is_told_the_right_one(admin: Client, path: str) -> None:
    """`curl -d` sends such a type by default; without a type the body is read as JSON."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    for kind in ("application/x-www-form-urlencoded", "text/plain", "x" * 5000):
        reply = await admin.post(path, content=b"{}", headers={"content-type": kind})
        assert reply.status_code == 415
        assert reply.json()["hint"].startswith("send it with `Content-Type: application/json`")
        assert len(reply.text) < 1000
    unknown = await admin.post(path, content=b"{}")
    assert unknown.status_code in {200, 422}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    (
        ("POST", "/v1/bots/shop/messages", GOOD),
        ("POST", "/v1/bots/shop/messages/batch", b"[" + GOOD + b"]"),
        ("POST", "/v1/bots/shop/messages/batch", b"[" + GOOD + b", {}]"),
        ("POST", "/v1/policies/validate", b"{}"),
        ("PATCH", "/v1/bots/shop", b'{"name": "Shop"}'),
    ),
)
async def test_a_byte_order_mark_is_passed_over(admin: Client, method: str, path: str, body: bytes) -> None:
    """Windows puts one before UTF-8, and it is invisible: every route reads what follows."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    reply = await admin.request(method, path, content=b"\xef\xbb\xbf" + body)

    assert reply.status_code == 200, reply.text
    assert reply.json().get("accepted", 1) == 1


async def test_a_byte_order_mark_before_lines_is_passed_over(admin: Client) -> None:
    """It stands before the first line, and belongs to none."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    body = b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD

    reply = await admin.post("/v1/bots/shop/messages/batch", content=body, headers={"content-type": "application/x-ndjson"})

    assert reply.json()["accepted"] == 2


async def test_a_compressed_body_is_told_that_it_is(admin: Client) -> None:
    """Not that its JSON is malformed."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    reply = await admin.post("/v1/bots/shop/messages", content=gzip.compress(GOOD), headers={"content-encoding": "gzip"})

    assert (reply.status_code, reply.json()["detail"]) == (415, "cannot read 'gzip'")


async def test_an_unforeseen_error_of_an_entry_is_a_problem_too(admin: Client, app: FastAPI) -> None:
    """500 with the id that the log has, in the shape of all other answers; the trace is in the log alone."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    broken = SimpleNamespace(config=app.state.resources.config, settings=app.state.resources.settings)
    app.state.resources = broken  # without an intake

    reply = await admin.post("/v1/bots/shop/messages", content=GOOD, headers={"x-request-id": "abc-1"})

    assert (reply.status_code, reply.headers["content-type"]) == (500, "application/problem+json")
    assert (reply.json()["request_id"], reply.headers["x-request-id"]) == ("abc-1", "abc-1")
    assert "intake" not in reply.text


async def test_a_refusal_is_no_longer_than_somebody_reads(admin: Client) -> None:
    """A body of nothing but unknown fields is not answered with forty times its length."""
    many: Json = {f"field{at}": 1 for at in range(2000)} | {"x" * 5000: 1}

    for path, body in (
        ("/v1/policies/validate", many),
        ("/v1/bots", many | {"id": "b"}),
        ("/v1/policies/validate", {"x" * 5000: 1}),
    ):
        reply = await admin.post(path, json=body)
        assert reply.status_code == 422
        assert len(reply.text) < 50_000


@pytest.mark.parametrize(
    ("path", "body", "where", "what"),
    (
        (
            "/v1/policies/validate",
            '{"closure_message": {"texts": {"de": "\\ud800"}}}',
            "closure_message.texts.de",
            "it holds half of a surrogate pair",
        ),
        (
            "/v1/bots",
            '{"id": "b", "policy": {"channels": {"sms": {"reminder": 1e400}}}}',
            "policy.channels.sms.reminder",
            "it holds a",
        ),
        ("/v1/bots", '{"id": "b", "nme": "B"}', "nme", "there is no such field"),
        ("/v1/bots", '{"name": "B"}', "id", "it is required"),
        ("/v1/bots", '{"id": "b", "clock_mode": "manual"}', "clock_mode", "it is for sandbox bots"),
        ("/v1/bots", '{"id": ', "body", "it is no JSON from character 7 on: Expecting value"),
    ),
)
async def test_a_refused_body_names_its_field(admin: Client, path: str, body: str, *, where: str, what: str) -> None:
    """As far down as it stands, in words for people."""
    reply = await admin.post(path, content=body, headers={"content-type": "application/json"})
    (fault,) = reply.json()["errors"]

    assert fault["where"] == where
    assert fault["what"].startswith(what)


@pytest.mark.parametrize("named", ("1", "", ",", '"1" "2"', '"1', "W/1", "é"))
async def test_what_is_no_etag_is_told_so(admin: Client, named: str) -> None:
    """No other process was faster: the version was not written as one."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    reply = await admin.put("/v1/bots/shop/policy", json={}, headers=[(b"if-match", named.encode())])

    assert (reply.status_code, faults(reply.json())) == (422, ["If-Match"])
    assert reply.json()["errors"][0]["hint"].endswith('"1"')


async def test_no_route_redirects(admin: Client) -> None:
    """The address in a redirect is the one that a proxy sees: a client that follows would send its key there."""
    for path in ("/v1/bots/", "/v1/sessions/", "/v1/bots/shop/messages/", "/healthz/"):
        assert (await admin.get(path)).status_code == 404


@pytest.mark.parametrize("user", ("a/b", "../..", "/", "a/variables/b", "x@host/resource", "a%2Fb", "ann?x=1#y", "é 😀", "a;b"))
async def test_every_conversation_can_be_asked_for(admin: Client, worker: Worker, user: str) -> None:
    """Any characters of its id, slashes too: its sessions, its context, its variables."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    answer = await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": user, "role": "user", "tags": ["x"]})
    named = quote(f"web:{user}", safe="")
    conversation = f"/v1/bots/shop/conversations/{named}"
    for name in ("x", "context", "variables"):
        await admin.ok("PUT", f"{conversation}/variables/{name}", {"value": name})

    variables = (await admin.ok("GET", f"{conversation}/variables"))["variables"]
    assert {name: variable["value"] for name, variable in variables.items()} == {
        "x": "x",
        "context": "context",
        "variables": "variables",
    }
    assert (await admin.ok("GET", f"{conversation}/variables/context"))["value"] == "context"
    assert (await admin.ok("GET", f"{conversation}/context"))["tags"] == ["x"]
    for _ in ("open", "archived"):
        sessions = (await admin.ok("GET", f"/v1/conversations/{named}/sessions"))["sessions"]
        assert [session["id"] for session in sessions] == [answer["session_id"]]
        await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close")
        await worker.archivist.run_once()


async def test_open_sessions_with_the_longest_names_are_walked_too(admin: Client) -> None:
    """The place in their list holds conversation, window and thread: no cursor is too long to be sent back."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": {"method": "client"}})
    long = {"role": "user", "channel": "help", "window_id": "😀" * 256, "client_session_id": "😀" * 256}
    for user in ("1", "2", "3"):
        await admin.ok("POST", "/v1/bots/shop/messages", long | {"user_id": "😀" * 255 + user})

    users: list[str] = []
    cursor: Json = {}
    while not users or cursor:
        page = await admin.ok("GET", "/v1/bots/shop/live", params={"limit": 1} | cursor)
        users += [session["user_id"][-1] for session in page["sessions"]]
        cursor = {"cursor": page["next"]} if page["next"] else {}

    assert sorted(users) == ["1", "2", "3"]
