"""Analytics equal DuckDB over the exported Parquet: random questions over HTTP against SQL of another engine."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pytest

from app.archive import rollup
from app.archive.analytics_metrics import DIMENSIONS, METRICS
from app.archive.sessions import insert_closed
from app.queries.analytics import TIME_DIMENSIONS
from app.resources import Resources
from tests.analytics.history import DAY, FIRST, LAST, history
from tests.api.conftest import Client, Json

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "America/Havana", "Asia/Kolkata", "Pacific/Apia")
# Between two instants of the server; the export has only one of them.
LAG = "close_lag_ms"

OF_USER = "e.bot = s.bot AND e.user_id = s.user_id AND e.id <> s.id AND e.counted"
RETURNED = f"""EXISTS (FROM s e WHERE {OF_USER} AND e.interactive AND e.opened_at >= s.closed_at
    AND e.opened_at < s.closed_at + INTERVAL"""
PREPARED = f"""
    CREATE TABLE answers AS SELECT *, bot || ' ' || user_id AS person, contained AND counted AND interactive AS kept,
        EXISTS (FROM s e WHERE {OF_USER} AND (e.opened_at < s.opened_at OR e.opened_at = s.opened_at AND e.id < s.id)) AS known,
        {RETURNED} '24 hours') AS back_24h, {RETURNED} '7 days') AS back_7d
    FROM s
"""  # noqa: S608 - names of columns
COUNTS = {
    "sessions": "count(*)",
    "counted": "count_if(counted)",
    "conversations": "count(DISTINCT bot || ' ' || conversation_id) FILTER (counted)",
    "users": "count(DISTINCT person) FILTER (counted)",
    "users_new": "count(DISTINCT person) FILTER (counted AND NOT known)",
    "users_returning": "count(DISTINCT person) FILTER (counted AND known)",
    "interactions": "sum(interactions) FILTER (counted)",
    "entries": "sum(entries) FILTER (counted)",
    "billing_sessions": "sum(billing_sessions) FILTER (counted)",
    **{f"entries_{role}": f"sum(entries_of_{role}) FILTER (counted)" for role in ("user", "bot", "agent", "system")},
}
PARTS = {
    "contained": "kept",
    "returned_24h": "back_24h",
    "returned_7d": "back_7d",
    "contained_24h": "kept AND NOT back_24h",
    "contained_7d": "kept AND NOT back_7d",
    **{name: f"outcome = '{name}'" for name in ("escalated", "handed_off", "resolved", "dropped", "abandoned")},
}
SPREADS = ("active_ms", "idle_ms", "first_response_ms")
LOCAL = "timezone($zone, opened_at)"
UTC = "timezone('UTC', opened_at)"
TIMES = {
    "hour": f"strftime(date_trunc('hour', {LOCAL}), '%Y-%m-%d %H:%M ') || date_diff('minute', {UTC}, {LOCAL})",
    **{unit: f"strftime(date_trunc('{unit}', {LOCAL}), '%Y-%m-%d')" for unit in ("day", "week", "month")},
    "hour_of_week": f"(isodow({LOCAL}) - 1) * 24 + hour({LOCAL})",
}


@pytest.fixture
async def exported(admin: Client, resources: Resources, tmp_path: Path) -> AsyncIterator[duckdb.DuckDBPyConnection]:
    """The sessions of the archive in DuckDB, by way of the export. Some of their hours are rolled up, the others are stale."""
    for bot in ("shop", "bank"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
    async with resources.engine.begin() as conn:
        await insert_closed(conn, history(Random(29), 900))  # noqa: S311 - the same sessions each time
        await rollup.roll_up(conn, last=await rollup.last_note(conn))
    reply = await admin.get("/v1/exports/sessions", params={"format": "parquet"})
    (tmp_path / "sessions.parquet").write_bytes(reply.content)
    with duckdb.connect() as duck:
        duck.execute(f"CREATE VIEW s AS FROM '{tmp_path}/sessions.parquet'")
        duck.execute(PREPARED)
        yield duck


def question(random: Random) -> dict[str, Any]:
    start = FIRST + timedelta(hours=random.randrange(24 * 100), minutes=random.randrange(60))
    end = min(start + timedelta(hours=random.randrange(1, 24 * 170)), LAST + DAY)
    time = random.choice([None, *TIME_DIMENSIONS])
    names = random.sample(sorted(METRICS.keys() - {LAG, "sessions"}), k=6)
    filters: list[dict[str, Any]] = [{}, {}, {"bot": "shop"}, {"channel": ["web", "sms"]}, {"interactive": "true"}]
    return {
        "from": start.isoformat(),
        "to": end.isoformat(),
        "metrics": ",".join(["sessions", *names]),
        "group_by": ",".join([*([time] if time else []), *random.sample(sorted(DIMENSIONS), k=random.randrange(3))]),
        "time_zone": random.choice(ZONES),
        "top": random.choice([1, 3, 100]) if time != "hour" else 1,
        "developers": random.choice(["true", "false"]),
        **random.choice([*filters, {"outcome": "resolved"}]),
    }


def columns(name: str) -> list[str]:
    """The value of a metric, as DuckDB computes it."""
    if name in COUNTS:
        return [f"coalesce({COUNTS[name]}, 0)"]
    if name in SPREADS:
        places = [f"quantile_disc({name}, {at}) FILTER (counted)" for at in (0.5, 0.9, 0.99)]
        return [f"coalesce(sum({name}) FILTER (counted), 0)", f"count({name}) FILTER (counted)", *places]
    if name == "interactive":
        return ["count_if(counted AND interactive)", "count_if(counted)"]
    if name == "interactions_per_session":
        return ["coalesce(sum(interactions) FILTER (counted), 0)", "count_if(counted)"]
    return [f"count_if(counted AND interactive AND {PARTS[name]})", "count_if(counted AND interactive)"]


def value(name: str, numbers: list[Any]) -> dict[str, Any]:
    """The metric as the API shows it, from what DuckDB computed; of nothing, from nothing."""
    if name in COUNTS:
        return {"value": int(numbers[0]) if numbers else 0}
    total, count, *places = map(int, numbers) if None not in numbers and numbers else (0, 0, None, None, None)
    if name in SPREADS:
        mean = total // count if count else None
        return {"sum": total, "count": count, "mean": mean, **dict(zip(("p50", "p90", "p99"), places, strict=True))}
    if name == "interactions_per_session":
        return {"sum": total, "count": count, "mean": total * 100 // count / 100 if count else None}
    return {"part": total, "whole": count, "percent": total * 100 // count if count else None}


def label_of(time: str, label: Any) -> Any:  # noqa: ANN401 - as the API has it
    """The label of a bucket as DuckDB computes it: an hour with its offset, else a date."""
    if time == "hour":
        at = datetime.fromisoformat(label)
        return f"{at:%Y-%m-%d %H:%M} {(at.utcoffset() or timedelta()) // timedelta(minutes=1)}"
    return label if time == "hour_of_week" else label[:10]


def computed(duck: duckdb.DuckDBPyConnection, asked: dict[str, Any], names: list[str], *, own: set[str]) -> dict[Any, list[Any]]:
    """Bucket and key to the numbers of the metrics; keys that are not among `own` are one."""
    groups = [name for name in asked["group_by"].split(",") if name]
    time = next((TIMES[name] for name in groups if name in TIMES), "''")
    texts = [f"coalesce(CAST({name} AS VARCHAR), '-')" for name in groups if name not in TIMES]
    key = f"concat_ws('|', {', '.join(texts)})" if texts else "''"
    given = {name: asked[name] for name in ("from", "to")} | {"own": sorted(own)}
    where = "opened_at >= CAST($from AS TIMESTAMPTZ) AND opened_at < CAST($to AS TIMESTAMPTZ)"
    where += "" if asked["developers"] == "true" else " AND NOT developer"
    for name in ("bot", "outcome", "interactive", "channel"):
        if name in asked:
            listed = asked[name] if isinstance(asked[name], list) else [asked[name]]
            where += f" AND CAST({name} AS VARCHAR) IN ({', '.join(repr(one) for one in listed)})"
    sql = f"""
        SELECT {time} AS bucket, CASE WHEN list_contains($own, {key}) THEN {key} END AS key,
            {", ".join(each for name in names for each in columns(name))}
        FROM answers WHERE {where} GROUP BY ALL
    """  # noqa: S608 - SQL of this module
    if "$zone" in sql:
        given["zone"] = asked["time_zone"]
    return {(bucket, key): numbers for bucket, key, *numbers in duck.execute(sql, given).fetchall()}


def key_of(group: Json, dimensions: list[str]) -> str:
    values = [group["key"][name] for name in dimensions]
    return "|".join("-" if one is None else str(one).lower() if isinstance(one, bool) else str(one) for one in values)


@pytest.mark.parametrize("rounds", (30, pytest.param(300, marks=(pytest.mark.slow, pytest.mark.timeout(900)))))
async def test_every_number_equals_that_of_duckdb(admin: Client, exported: duckdb.DuckDBPyConnection, rounds: int) -> None:
    """Exact metrics exactly, percentiles within the error that the answer states; no group of DuckDB is left over."""
    random, seen, rolled_up = Random(2027), set[str](), 0  # noqa: S311 - as above
    for _ in range(rounds):
        asked = question(random)
        names = asked["metrics"].split(",")
        answered = await admin.ok("GET", "/v1/analytics/sessions", params={name: it for name, it in asked.items() if it})
        off = answered["percentile_error_percent"]
        time = next((name for name in answered["group_by"] if name in TIMES), None)
        dimensions = [name for name in answered["group_by"] if name not in TIMES]
        own = {key_of(group, dimensions) for group in answered["groups"] if not group["other"]}
        found = computed(exported, asked, names, own=own)
        for group in answered["groups"]:
            bucket = label_of(time, group["key"][time]) if time else ""
            numbers = iter(found.pop((bucket, None if group["other"] else key_of(group, dimensions)), []))
            for name in names:
                right = value(name, list(islice(numbers, len(columns(name)))))
                near(group["metrics"][name], right, off=off)
                assert {field: group["metrics"][name][field] for field in right} == right, (name, group["key"], asked)
        assert not found, asked
        seen.update(names)
        rolled_up += off > 0

    assert rounds < 300 or seen == METRICS.keys() - {LAG}
    assert rounds / 10 < rolled_up < rounds


def near(shown: Json, right: dict[str, Any], *, off: int) -> None:
    """Take a percentile for exact that is at most so many percent off, and one for the rounding."""
    for field in ("p50", "p90", "p99") if off else ():
        exact = right.get(field)
        if exact is not None and abs(shown[field] - exact) <= exact * off / 100 + 1:
            right[field] = shown[field]


async def test_the_largest_keys_have_groups_of_their_own(admin: Client, exported: duckdb.DuckDBPyConnection) -> None:
    """By DuckDB's count, too."""
    asked = {"from": FIRST.isoformat(), "to": LAST.isoformat(), "group_by": "intent", "top": "2", "developers": "true"}
    groups = (await admin.ok("GET", "/v1/analytics/sessions", params=asked))["groups"]
    largest = exported.execute(
        "SELECT intent FROM s WHERE opened_at >= CAST($from AS TIMESTAMPTZ) AND opened_at < CAST($to AS TIMESTAMPTZ) "
        "GROUP BY 1 ORDER BY count(*) DESC LIMIT 2",
        {name: asked[name] for name in ("from", "to")},
    ).fetchall()

    assert [group["key"]["intent"] for group in groups if not group["other"]] == [intent for (intent,) in largest]
