"""Analytics over HTTP: parameters, links to lists, bounds, and one history under several definitions."""

from collections import Counter
from random import Random

import pytest
from sqlalchemy import Connection, event, text

from app.api.routes.analytics import AnalyticsView, ComparisonView, PathsView
from app.archive.analytics_metrics import DIMENSIONS, METRICS
from app.archive.sessions import insert_closed
from app.resources import Resources
from app.worker import Worker
from tests.analytics.history import history
from tests.api.conftest import Client, ClientMaker, Json

ANALYTICS = "/v1/analytics/sessions"
PATHS = "/v1/analytics/paths"
STEPS = ("buy", "refund", "buy")
YEAR = {"from": "2026-01-01T00:00:00+01:00", "to": "2027-01-01T00:00:00+01:00"}
MINUTE_S = 60


@pytest.fixture
async def archived(admin: Client, resources: Resources) -> int:
    for bot in ("shop", "bank"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
    made = history(Random(7), 400)  # noqa: S311 - the same sessions each time
    async with resources.engine.begin() as conn:
        await insert_closed(conn, made)
    return len(made)


async def ask(admin: Client, **asked: object) -> Json:
    found: Json = await admin.ok("GET", ANALYTICS, params=YEAR | asked)
    AnalyticsView.model_validate(found)
    return found


async def listed(admin: Client, url: str) -> int:
    """How many sessions the list at `url` has, on all its pages."""
    page = await admin.ok("GET", url, params=None)
    count = len(page["sessions"])
    while page["next"]:
        page = await admin.ok("GET", f"{url}&limit=200&cursor={page['next']}")
        count += len(page["sessions"])
    return count


@pytest.mark.parametrize("group_by", ("", "month", "channel", "day,bot", "month,reason,interactive"))
async def test_each_number_links_to_its_sessions(admin: Client, archived: int, group_by: str) -> None:
    """The list behind a number of sessions has as many, under the filters that were asked for."""
    names = [name for name, metric in METRICS.items() if metric.unit == "sessions"]
    asked = {"metrics": ",".join(names), "developers": "true", "channel": "web", "top": 2, "time_zone": "Europe/Berlin"}
    found = await ask(admin, **asked, **({"group_by": group_by} if group_by else {}))
    followed = 0
    for group in found["groups"][:: max(1, len(found["groups"]) // 8)]:
        for name, value in group["metrics"].items():
            if (url := value["sessions_url"]) is not None and METRICS[name].listed_by is not None:
                assert await listed(admin, url) == value.get("value", value.get("part")), (name, url)
                followed += 1

    assert archived
    assert followed > 0


async def test_other_and_missing_values_have_no_list(admin: Client, archived: int) -> None:
    """A list can leave nothing out, and ask for no missing value."""
    found = await ask(admin, group_by="language", top=3)
    by_key = {group["key"]["language"]: group for group in found["groups"] if not group["other"]}

    assert by_key.keys() == {None, "de", "pt-BR"}
    assert by_key[None]["metrics"]["sessions"]["sessions_url"] is None
    assert sum(group["metrics"]["sessions"]["value"] for group in found["groups"]) <= archived
    top = await ask(admin, group_by="language", top=1)
    assert [group["other"] for group in top["groups"]] == [False, True]
    assert top["groups"][1]["metrics"]["sessions"]["sessions_url"] is None


async def test_developers_are_left_out_unless_asked_for(admin: Client, archived: int) -> None:
    async def count(**asked: object) -> int:
        return int((await ask(admin, **asked))["groups"][0]["metrics"]["sessions"]["value"])

    without, only, both = await count(), await count(developer="true"), await count(developers="true")

    assert only > 0
    assert (without + only, both) == (archived, archived)


async def test_lists_may_be_repeated_or_separated_by_commas(admin: Client, archived: int) -> None:
    one = await ask(admin, metrics="sessions,users", group_by="bot,channel")
    other = await admin.ok("GET", ANALYTICS, params=[*YEAR.items(), ("metrics", "sessions"), ("metrics", "users"),
                                                      ("group_by", "bot"), ("group_by", "channel")])  # fmt: skip

    assert archived
    assert one == other


@pytest.mark.parametrize(
    ("where", "asked"),
    (
        ("metrics", {"metrics": "sessions,beauty"}),
        ("metrics", {"metrics": "sessions,sessions"}),
        ("group_by", {"group_by": "day,week"}),
        ("group_by", {"group_by": "bot,channel,reason,outcome"}),
        ("group_by", {"group_by": "hour", "from": "1970-01-01T00:00:00Z"}),
        ("group_by", {"group_by": "hour,bot", "top": 100}),
        ("time_zone", {"time_zone": "Mars/Olympus"}),
        ("from", {"from": "2027-01-01T00:00:00Z"}),
        ("from", {"from": "0001-01-01T00:00:00Z", "to": "0001-01-01T00:00:00+01:00"}),
        ("top", {"top": 101}),
        ("compare", {"compare": "next"}),
        ("start", {"start": "2026-01-01T00:00:00Z"}),
        ("cursor", {"cursor": "x"}),
    ),
)
async def test_impossible_questions_are_refused(admin: Client, archived: int, where: str, asked: Json) -> None:
    """Each with the parameter at fault."""
    problem = await admin.refused("GET", ANALYTICS, params=YEAR | asked)

    assert archived
    assert problem["status"] == 422
    assert where in {fault["where"].split("[")[0] for fault in problem["errors"]}


async def test_instants_at_the_ends_of_the_calendar_are_no_failure(admin: Client) -> None:
    for unit in ("day", "week", "month"):
        problem = await admin.refused(
            "GET",
            ANALYTICS,
            params={"from": "0001-01-01T00:00:00Z", "to": "9999-12-31T23:00:00Z", "group_by": unit, "time_zone": "Asia/Tokyo"},
        )
        assert problem["status"] == 422
    for start, end, zone in (("0001-01-01T00:00:00Z", "0001-01-02T00:00:00Z", "America/New_York"),
                             ("9999-12-30T00:00:00Z", "9999-12-31T23:59:00Z", "Asia/Tokyo")):  # fmt: skip
        for unit in ("hour", "day", "week", "month"):
            asked = {"from": start, "to": end, "group_by": unit, "time_zone": zone, "compare": "previous"}
            assert (await admin.get(ANALYTICS, params=asked)).status_code in {200, 422}


async def test_a_question_that_takes_too_long_is_refused(admin: Client, archived: int, resources: Resources) -> None:
    """The statement timeout ends it; the answer says so and how to ask for less."""

    def hurry(conn: Connection) -> None:
        conn.exec_driver_sql("SET LOCAL statement_timeout = '200ms'")

    async with resources.engine.connect() as conn:
        await conn.execute(text("LOCK TABLE sessions"))
        event.listen(resources.engine.sync_engine, "begin", hurry)
        reply = await admin.get(ANALYTICS, params=YEAR)

    assert archived
    assert (reply.status_code, reply.json()["code"]) == (503, "unavailable")
    assert "narrow" in reply.json()["hint"]


async def test_definitions_are_the_table_of_the_code(admin: Client) -> None:
    found = await admin.ok("GET", "/v1/analytics/definitions")

    assert [each["name"] for each in found["metrics"]] == list(METRICS)
    assert [each["name"] for each in found["dimensions"]] == list(DIMENSIONS)


async def test_paths_and_funnels_equal_a_recount(admin: Client, archived: int) -> None:
    """By intents alone and with the outcome; steps come in order, others may be between them."""
    every = [one.session for one in history(Random(7), archived)]  # noqa: S311 - the fixture's
    sessions = [one for one in every if one.counted and one.interactive and not one.developer]
    found = await admin.ok("GET", PATHS, params=[*YEAR.items(), ("depth", 2), ("top", 4), *(("steps", step) for step in STEPS)])
    PathsView.model_validate(found)
    counts = Counter(one.intents[:2] for one in sessions)
    top = {tuple(one["path"]): one["share"]["part"] for one in found["paths"]}

    assert found["sessions"] == len(sessions)
    assert list(top.values()) == sorted(counts.values(), reverse=True)[:4]
    assert all(counts[path] == count for path, count in top.items())
    assert found["other"] == len(sessions) - sum(top.values())
    reached = [sum(_has_in_order(one.intents, STEPS[: at + 1]) for one in sessions) for at in range(len(STEPS))]
    assert [step["share"]["part"] for step in found["steps"]] == reached
    assert reached == sorted(reached, reverse=True)
    assert reached[-1] > 0

    ended = await admin.ok("GET", PATHS, params=YEAR | {"depth": 1, "top": 100, "with_outcome": "true"})
    ends = Counter((*one.intents[:1], one.outcome) for one in sessions)
    assert {tuple(one["path"]): one["share"]["part"] for one in ended["paths"]} == ends
    assert all(one["contained"]["part"] == 0 for one in ended["paths"] if one["path"][-1] == "escalated")


def _has_in_order(intents: tuple[str, ...], steps: tuple[str, ...]) -> bool:
    left = iter(intents)
    return all(step in left for step in steps)


async def test_one_history_under_five_definitions(admin: Client, worker: Worker) -> None:
    """7 minutes of silence, then 20; a session without a bot; the differences add up and have their reasons."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})

    async def say(role: str, *, after_min: int = 0, user: str = "ann") -> None:
        if after_min:
            await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": after_min * MINUTE_S})
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": user, "role": role, "text": "x"})

    await say("user")
    await say("bot")
    await say("user", after_min=7)
    await say("bot")
    await say("user", user="bob")
    await say("user", after_min=20)
    await say("bot")
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 60 * MINUTE_S})
    await worker.archivist.run_once()
    found = await admin.ok("GET", "/v1/analytics/definitions/compare", params={"bot": "shop", "from": "2020-01-01T00:00:00Z",
                                                                               "to": "2100-01-01T00:00:00Z"})  # fmt: skip
    ComparisonView.model_validate(found)
    by_name = {each["definition"]: each for each in found["definitions"]}

    assert found["messages"] == 7
    assert {name: each["sessions"] for name, each in by_name.items()} == {
        "own": 3,
        "kore": 3,
        "botanalytics": 3,
        "reamaze": 2,
        "aivo": 4,
    }
    assert by_name["aivo"]["reasons"] == [
        {
            "reason": "inactivity",
            "channel": "web",
            "more": 1,
            "fewer": 0,
            "settings": {
                "inactivity_minutes": {"theirs": 5, "own": 15},
                "inactivity_clock": {"theirs": "user", "own": "any"},
            },
        }
    ]
    assert [each["reason"] for each in by_name["reamaze"]["reasons"]] == ["not_counted"]
    for each in found["definitions"]:
        assert each["difference"] == each["sessions"] - by_name["own"]["sessions"]


async def test_a_history_that_is_too_long_is_refused(admin: Client, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.queries.analytics.MOST_MESSAGES", 1)
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    for _ in range(2):
        await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "text": "x"})
    await admin.ok("POST", "/v1/bots/shop/clock/advance", {"seconds": 60 * MINUTE_S})
    await worker.archivist.run_once()
    asked = {"bot": "shop", "from": "2020-01-01T00:00:00Z", "to": "2100-01-01T00:00:00Z"}

    assert (await admin.refused("GET", "/v1/analytics/definitions/compare", params=asked))["status"] == 422


async def test_analytics_are_for_readers_of_the_bot(clients: ClientMaker, archived: int) -> None:
    """A limited key's numbers are of its bots alone."""
    reader, writer = await clients("read", bots=["shop"]), await clients("ingest")
    found = await reader.ok("GET", ANALYTICS, params=YEAR | {"group_by": "bot"})

    assert archived
    assert [group["key"] for group in found["groups"]] == [{"bot": "shop"}]
    assert (await writer.refused("GET", ANALYTICS))["status"] == 403
