"""Analytics equal a recount in plain Python: random sessions, random questions, in time zones whose clocks change."""

from datetime import datetime, timedelta
from functools import partial
from random import Random
from zoneinfo import ZoneInfo

import pytest
from msgspec import json, structs
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import rollup
from app.archive.analytics_metrics import DIMENSIONS, METRICS
from app.archive.session_reads import SessionFilter
from app.archive.sessions import ClosedSession, insert_closed
from app.domain.instants import ms_of
from app.queries.analytics import TIME_DIMENSIONS, ListAddress, Period, Question, answer
from tests.analytics.history import DAY, FIRST, LAST, Recount, Sessions, history, local_key, split, value_of

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Africa/Cairo", "America/Havana", "Asia/Kolkata", "Pacific/Apia")
NO_LIST = ListAddress("/v1/sessions", {}, frozenset())
# It compares two instants of the server with each other; its own test is below.
LAG = "close_lag_ms"
Groups = dict[object, list[ClosedSession]]


def asked(random: Random) -> Question:
    start = FIRST + timedelta(hours=random.randrange(24 * 100), minutes=random.randrange(60))
    end = start + timedelta(hours=random.randrange(1, 24 * 170))
    time = random.choice([None, *TIME_DIMENSIONS])
    metrics = random.sample([metric for metric in METRICS.values() if metric.name != LAG], k=6)
    return Question(
        wanted=SessionFilter(
            bots=random.choice([None, frozenset({"shop"}), frozenset({"shop", "bank"})]),
            channel=random.choice([None, None, "web"]),
            developer=random.choice([None, False]),
        ),
        period=Period(start, min(end, LAST)),
        time_zone=random.choice(ZONES),
        metrics=[METRICS["sessions"], *metrics],
        dimensions=random.sample(list(DIMENSIONS.values()), k=random.randrange(3)),
        time=time,
        top=random.choice([1, 3, 100]) if time != "hour" else 1,
        compare=random.random() < 0.3,
        listed=NO_LIST,
    )


def matching(question: Question, everything: Sessions, *, start_ms: int, end_ms: int) -> Sessions:
    wanted = question.wanted
    return [
        one
        for one in everything
        if start_ms <= one.session.opened_at_ms < end_ms
        and (wanted.bots is None or one.strand.bot in wanted.bots)
        and wanted.channel in {None, one.session.channel}
        and wanted.developer in {None, one.session.developer}
    ]


def key_of(question: Question, key: dict[str, object]) -> tuple[object, ...]:
    """A group's key as the recount has it: a day's label begins with its date."""
    time = key[question.time] if question.time else None
    if question.time in {"day", "week", "month"}:
        time = str(time)[:10]
    return time, *(key[dimension.name] for dimension in question.dimensions)


def recounted(question: Question, everything: Sessions) -> Groups:
    start_ms, end_ms = ms_of(question.period.start), ms_of(question.period.end)
    time, zone = question.time, question.zone
    return split(
        matching(question, everything, start_ms=start_ms, end_ms=end_ms),
        lambda one: (
            local_key(time, one.session.opened_at_ms, zone) if time else None,
            *(value_of(dimension.name, one) for dimension in question.dimensions),
        ),
    )


@pytest.fixture
async def everything(engine: AsyncEngine) -> Sessions:
    made = history(Random(13), 900)  # noqa: S311 - the same sessions each time
    async with engine.begin() as conn:
        await insert_closed(conn, made)
        # Some hours are rolled up, the others are stale.
        await rollup.roll_up(conn, last=await rollup.last_note(conn))
    return made


@pytest.mark.parametrize("rounds", (50, pytest.param(300, marks=pytest.mark.slow)))
async def test_every_number_equals_its_recount(engine: AsyncEngine, everything: Sessions, rounds: int) -> None:
    """Random questions; every metric of every group, those of `other` together, and no session left over.

    Some hours are rolled up and others are stale, some questions are answered from the roll-up and others from the sessions.
    """
    random, recount, seen, rolled_up = Random(2026), Recount(everything), set[str](), 0  # noqa: S311 - as above
    for _ in range(rounds):
        question = asked(random)
        answered = await answer(engine, question)
        groups, compared = answered["groups"], partial(compare, question, off=answered["percentile_error_percent"])
        rolled_up += compared.keywords["off"] > 0
        left = recounted(question, everything)
        for group in groups:
            if not group["other"]:
                compared(group["metrics"], recount, left.pop(key_of(question, group["key"]), []))
                seen.update(group["metrics"])
        rest = split([one for found in left.values() for one in found], partial(time_of, question))
        for group in groups:
            if group["other"]:
                compared(group["metrics"], recount, rest.pop(key_of(question, group["key"])[0], []))
        assert not rest, question

    assert seen == METRICS.keys() - {LAG}
    assert rounds / 10 < rolled_up < rounds


def compare(question: Question, metrics: dict[str, dict[str, object]], recount: Recount, group: Sessions, *, off: int) -> None:
    """`off`: how many percent of itself a percentile may be off, and one for the rounding."""
    for name, found in metrics.items():
        value = {field: number for field, number in found.items() if field != "sessions_url"}
        right = recount.value(name, group)
        for field in ("p50", "p90", "p99") if off else ():
            exact, near = right.get(field), value.get(field)
            if isinstance(exact, int) and isinstance(near, int) and abs(near - exact) <= exact * off / 100 + 1:
                value[field] = exact
        assert value == right, (name, question)


def time_of(question: Question, one: ClosedSession) -> object:
    return local_key(question.time, one.session.opened_at_ms, question.zone) if question.time else None


async def test_the_period_before_is_as_if_asked_for_alone(engine: AsyncEngine, everything: Sessions) -> None:
    """Each group of the month before, beside that of the month; a key that only the month before has is there too."""
    assert everything
    zone = ZoneInfo("Europe/Berlin")
    october = Period(datetime(2026, 10, 1, tzinfo=zone), datetime(2026, 11, 1, tzinfo=zone))
    question = Question(
        wanted=SessionFilter(),
        period=october,
        time_zone=zone.key,
        metrics=[METRICS["sessions"], METRICS["users"], METRICS["first_response_ms"]],
        dimensions=[DIMENSIONS["channel"], DIMENSIONS["language"]],
        time=None,
        top=100,
        compare=True,
        listed=NO_LIST,
    )
    both = await answer(engine, question)
    september = Period(datetime(2026, 9, 1, tzinfo=zone), october.start)
    alone = await answer(engine, structs.replace(question, period=september, compare=False))
    numbers = {json.encode(group["key"]): stripped(group["metrics"]) for group in alone["groups"]}

    assert both["previous"] == {"from": alone["from"], "to": alone["to"]}
    assert len(numbers) > 5
    for group in both["groups"]:
        if (expected := numbers.pop(json.encode(group["key"]), None)) is not None:
            assert stripped(group["previous"]) == expected
    assert not numbers


def stripped(metrics: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    return {name: {field: value for field, value in found.items() if field != "sessions_url"} for name, found in metrics.items()}


async def test_lag_is_from_the_close_to_the_archive(engine: AsyncEngine, everything: Sessions) -> None:
    """Every session has one but those of sandbox bots, whose clocks are their own."""
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE sessions SET archived_at = closed_at + INTERVAL '1234.5 ms'"))
        await conn.execute(text("INSERT INTO bots (id, name, sandbox, clock_mode) VALUES ('bank', 'bank', true, 'manual')"))
    question = Question(
        wanted=SessionFilter(),
        period=Period(FIRST, LAST + DAY),
        time_zone="UTC",
        metrics=[METRICS[LAG]],
        dimensions=[],
        time=None,
        top=1,
        compare=False,
        listed=NO_LIST,
    )
    found = (await answer(engine, question))["groups"][0]["metrics"][LAG]
    count = sum(one.session.counted and one.strand.bot == "shop" for one in everything)

    assert (found["count"], found["mean"]) == (count, 1234)
    assert found["p50"] == found["p99"] == pytest.approx(1234, rel=rollup.ERROR_PERCENT / 100)
