"""A bot's sessions added up: sessions that count, by filter, and of no other bot."""

from app.worker import Worker
from tests.api.conftest import Client, ClientMaker

ALL_OF_NOTHING = {"part": 0, "whole": 0, "percent": None}
SYSTEMS = ("kore", "botanalytics", "reamaze", "aivo")
NOTHING = {
    "sessions": 0,
    "not_counted": 0,
    "interactive": 0,
    "billing_sessions": 0,
    "interactions": 0,
    "active_ms": 0,
    "contained": ALL_OF_NOTHING,
    "contained_of_all": ALL_OF_NOTHING,
    "dropped": 0,
    "readings": dict.fromkeys(SYSTEMS, ALL_OF_NOTHING),
    "by_outcome": {},
    "by_reason": {},
    "by_trade": {},
}


async def filled(admin: Client, worker: Worker) -> str:
    """Make sessions that count and some that do not. Gives an instant before which one of them had opened.

    Bot `shop`: a silent one on web, then a resolved and an escalated one on sms, one of a developer, one without a bot.
    """
    for bot in ("shop", "other"):
        await admin.ok("POST", "/v1/bots", {"id": bot, "sandbox": True, "policy": {"preset": "reamaze"}})

    async def say(role: str, *, bot: str = "shop", **more: object) -> None:
        await admin.ok("POST", f"/v1/bots/{bot}/messages", {"role": role, "text": "x", **more})

    await say("user", user_id="a")
    await say("bot", user_id="a")
    clock = await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    for user, kind in (("b", "resolved"), ("c", "escalated")):
        await say("user", user_id=user, channel="sms")
        await say("bot", user_id=user, channel="sms", type=kind)
    await say("user", user_id="d", developer=True)
    await say("bot", user_id="d", type="resolved")
    await say("bot", user_id="e", bot="other")
    await say("agent", user_id="f")
    for bot in ("shop", "other"):
        await admin.ok("POST", f"/v1/bots/{bot}/clock/advance", {"seconds": 3600})
    await worker.archivist.run_once()
    return str(clock["now"])


async def test_sessions_that_count_are_added_up(admin: Client, worker: Worker) -> None:
    """Developers' and those without a bot are left out; rates are fractions with their percent cut."""
    await filled(admin, worker)

    assert await admin.ok("GET", "/v1/bots/shop/summary") == {
        "sessions": 3,
        "not_counted": 1,
        "interactive": 3,
        "billing_sessions": 3,
        "interactions": 4,
        "active_ms": 0,
        "contained": {"part": 2, "whole": 3, "percent": 66},
        "contained_of_all": {"part": 2, "whole": 3, "percent": 66},
        "dropped": 0,
        "readings": {
            "kore": {"part": 3, "whole": 3, "percent": 100},
            "botanalytics": {"part": 3, "whole": 3, "percent": 100},
            "reamaze": {"part": 2, "whole": 3, "percent": 66},
            "aivo": {"part": 3, "whole": 3, "percent": 100},
        },
        "by_outcome": {"completed": 1, "resolved": 1, "escalated": 1},
        "by_reason": {"inactivity": 1, "resolved": 1, "escalated": 1},
        "by_trade": {"bot": 3},
    }


async def test_containment_is_counted_over_sessions_with_a_user(admin: Client, worker: Worker) -> None:
    """Three visitors who never spoke, one user handed off, one who left unanswered: contained 0 of 2, and 3 of all 5 (S12)."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True, "policy": {"on_handoff": "end"}})

    async def say(role: str, user: str, kind: str = "message") -> None:
        await admin.ok("POST", "/v1/bots/shop/messages", {"role": role, "user_id": user, "type": kind, "text": "x"})

    for visitor in ("a", "b", "c"):
        await say("bot", visitor, "connect")
    await say("user", "d")
    await say("user", "e")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 60})
    await say("bot", "d", "handoff")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 3600})
    await worker.archivist.run_once()

    summary = await admin.ok("GET", "/v1/bots/shop/summary")
    assert summary["contained"] == {"part": 0, "whole": 2, "percent": 0}
    assert summary["contained_of_all"] == {"part": 3, "whole": 5, "percent": 60}
    assert summary["dropped"] == 1
    assert summary["active_ms"] == 60_000
    assert {name: (ratio["part"], ratio["whole"]) for name, ratio in summary["readings"].items()} == {
        "kore": (1, 2),
        "botanalytics": (5, 5),
        "reamaze": (5, 5),
        "aivo": (4, 5),
    }


async def test_developers_channels_and_times_can_be_asked_for(admin: Client, worker: Worker) -> None:
    """`opened_from` is included, `opened_to` is not."""
    between = await filled(admin, worker)

    async def sessions(**asked: object) -> int:
        return int((await admin.ok("GET", "/v1/bots/shop/summary", params=asked))["sessions"])

    assert await sessions(developers="true") == 4
    assert await sessions(channel="sms") == 2
    assert await sessions(opened_from=between) == 2
    assert await sessions(opened_to=between) == 1


async def test_summary_of_nothing(admin: Client) -> None:
    """No share of nothing."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    assert await admin.ok("GET", "/v1/bots/shop/summary") == NOTHING


async def test_summary_is_for_readers_of_the_bot(admin: Client, clients: ClientMaker) -> None:
    """Another bot's is not found, another scope's is forbidden, unknown parameters are refused."""
    for bot in ("shop", "other"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
    reader, bots_own = await clients("read", bots=["shop"]), await clients("ingest")

    assert await reader.ok("GET", "/v1/bots/shop/summary") == NOTHING
    assert (await reader.refused("GET", "/v1/bots/other/summary"))["status"] == 404
    assert (await bots_own.refused("GET", "/v1/bots/shop/summary"))["status"] == 403
    assert (await reader.refused("GET", "/v1/bots/shop/summary", params={"colour": "red"}))["status"] == 422
