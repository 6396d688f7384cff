"""The quota of a session through the API: a conversation goes on in another session, and nothing is lost or counted twice."""

import pytest

from app.settings import Settings
from app.worker import Worker
from tests.api.conftest import Client, Json

ENTRY = {"user_id": "ann", "role": "user", "text": "hi"}
PATH = "/v1/bots/shop/messages"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"session_max_entries": 3, "session_max_bytes": 1_000})


async def said(client: Client, *numbers: int, **fields: object) -> list[Json]:
    """The answers to a batch of entries with these numbers in their ids."""
    batch = [ENTRY | {"message_id": f"m{number}"} | fields for number in numbers]
    answers: list[Json] = (await client.ok("POST", f"{PATH}/batch", batch))["answers"]
    return answers


async def closed_sessions(client: Client, worker: Worker) -> list[Json]:
    """The closed sessions of the archive, the first opened first."""
    await worker.archivist.run_once()
    listed: list[Json] = (await client.ok("GET", "/v1/sessions?bot=shop"))["sessions"]
    return sorted(listed, key=lambda session: str(session["id"]))


async def test_a_batch_goes_on_in_the_next_session_at_the_quota(admin: Client, worker: Worker) -> None:
    """Split at the entry that has no room: each session has its three entries, and the two are connected."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    answers = await said(admin, 1, 2, 3, 4, 5, 6, 7)
    closed = await closed_sessions(admin, worker)
    explained = await admin.ok("GET", f"/v1/sessions/{closed[0]['id']}/explanation")
    stored = [(await admin.ok("GET", f"/v1/sessions/{each['id']}/messages"))["messages"] for each in closed]

    assert [answer["session"] for answer in answers] == ["opened", "continued", "continued"] * 2 + ["opened"]
    assert [answer["sequence"] for answer in answers] == [1, 2, 3] * 2 + [1]
    assert [[ended["reason"] for ended in answer["closed"]] for answer in answers] == [
        [],
        [],
        [],
        ["max_size"],
        [],
        [],
        ["max_size"],
    ]
    assert [(each["reason"], each["closing_rule"], each["outcome"], each["entries"]) for each in closed] == [
        ("max_size", "max_size", "completed", 3)
    ] * 2
    assert closed[1]["previous_session_id"] == closed[0]["id"] == answers[3]["closed"][0]["session_id"]
    assert [[message["message_id"] for message in each] for each in stored] == [["m1", "m2", "m3"], ["m4", "m5", "m6"]]
    assert "quota" in " ".join(explained["words"])


async def test_a_repeat_counts_once_and_closes_nothing(admin: Client) -> None:
    """Within its batch, of the session that is full, and of the session before."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    first = await said(admin, 1, 2, 2, 2, 3)
    again = await said(admin, 3, 1, 2)
    beyond = await said(admin, 4, 1, 4)

    assert [answer["duplicate"] for answer in first] == [False, False, True, True, False]
    assert [answer["sequence"] for answer in first] == [1, 2, 2, 2, 3]
    assert [(answer["duplicate"], answer["closed"]) for answer in again] == [(True, [])] * 3
    assert [answer["duplicate"] for answer in beyond] == [False, True, True]
    assert beyond[1]["session_id"] == first[0]["session_id"] != beyond[0]["session_id"]


async def test_bytes_count_too_and_a_large_entry_is_stored_alone(admin: Client, worker: Worker) -> None:
    """Two of 400 bytes have room together, the third has not; one of 5,000 has a session of its own."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    small = await said(admin, 1, 2, 3, text="x" * 400)
    large = await said(admin, 4, text="y" * 5_000)
    after = await said(admin, 5)
    closed = await closed_sessions(admin, worker)
    alone = await admin.ok("GET", f"/v1/sessions/{large[0]['session_id']}/messages")

    assert [answer["session"] for answer in (*small, *large, *after)] == ["opened", "continued", "opened", "opened", "opened"]
    assert [(each["reason"], each["entries"]) for each in closed] == [("max_size", 2), ("max_size", 1), ("max_size", 1)]
    assert [message["text"] for message in alone["messages"]] == ["y" * 5_000]


async def test_the_silence_begins_anew_with_the_next_session(admin: Client, worker: Worker) -> None:
    """It closes when nothing more comes; no closure message is sent for the full one."""
    texts = {"texts": {"default": "Bye"}}
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True, "policy": {"closure_message": texts}})
    await said(admin, 1, 2, 3)
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 600})
    (fourth,) = await said(admin, 4)
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 899})
    open_one = await admin.ok("GET", f"/v1/sessions/{fourth['session_id']}")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 1})
    closed = await closed_sessions(admin, worker)

    assert (open_one["status"], open_one["opening_rule"], open_one["entries"]) == ("open", "max_size", 1)
    assert [each["reason"] for each in closed] == ["max_size", "inactivity"]


@pytest.mark.parametrize("transcript", ("full", "none"))
async def test_the_quota_is_of_entries_as_they_were_sent(admin: Client, *, transcript: str) -> None:
    """A policy that stores no texts moves no boundary."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True, "policy": {"transcript": transcript}})
    answers = await said(admin, 1, 2, 3, text="x" * 400)

    assert [answer["session"] for answer in answers] == ["opened", "continued", "opened"]
