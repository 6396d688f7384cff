"""What a careless or hostile caller sends is refused in its own place, and changes nothing for anybody else."""

import pytest

from app.worker import Worker
from tests.api.conftest import Client, Json

FAR = ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59-14:00", "2100-01-01T00:00:00.001Z")


def faults(problem: Json) -> list[str]:
    """Where a refusal says that something is wrong."""
    return [fault["where"] for fault in problem["errors"]]


@pytest.mark.parametrize("far", FAR)
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
    for far in FAR:
        assert faults(await admin.refused("POST", advance, {"to": far})) == ["to"]
    assert (await admin.ok("POST", advance, {"to": "2099-12-31T23:59:00Z"}))["now"] == "2099-12-31T23:59:00.000Z"
    assert faults(await admin.refused("POST", advance, {"seconds": 61})) == ["seconds"]

    answer = await admin.ok("POST", "/v1/bots/box/messages", {"user_id": "a", "role": "user"})

    assert answer["closes_at"] == "2100-01-01T00:14:00.000Z"
    assert (await admin.ok("POST", f"/v1/sessions/{answer['session_id']}/close"))["reason"] == "api"


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
