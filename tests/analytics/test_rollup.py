"""The roll-up by hours equals what the sessions give, whatever happens to them and to the worker that computes it."""

import asyncio
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from msgspec import structs
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import stats
from app.archive.analytics_metrics import DIMENSIONS, METRICS
from app.archive.rollup import ERROR_PERCENT, TABLES, RollUp, last_note, note_all, percentiles, roll_up, wrong_hours
from app.archive.session_reads import SessionFilter
from app.archive.sessions import ClosedSession, insert_closed, update_closed
from app.archive.summary import summarise
from app.domain.instants import ms_of
from app.queries.analytics import ListAddress, Period, Question, answer
from tests.analytics.history import FIRST, LAST, history

ALL = (FIRST - timedelta(days=1), LAST + timedelta(days=7))


@pytest.fixture
def made() -> list[ClosedSession]:
    return history(Random(7), 300)  # noqa: S311 - the same sessions each time


async def stale(conn: AsyncConnection) -> int:
    return int((await conn.scalars(text("SELECT count(*) FROM stale_hours"))).one())


async def is_right(engine: AsyncEngine) -> bool:
    """Whether nothing is stale, every hour is right, and the hours add up to the sessions."""
    async with engine.connect() as conn:
        sums = [
            await conn.scalar(text(f"SELECT coalesce(sum(sessions), 0) = (SELECT count(*) FROM sessions) FROM {each.table}"))  # noqa: S608
            for each in TABLES
        ]
        return await stale(conn) == 0 and await wrong_hours(conn, *ALL) == [] and all(sums)


async def test_it_follows_inserts_updates_and_deletes(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """A batch, the same batch again with more, sessions with late entries, and sessions that are erased by hand."""
    job = RollUp(engine)
    async with engine.begin() as conn:
        await insert_closed(conn, made[:200])
    assert await job.run_once() > 100
    assert await is_right(engine)

    async with engine.begin() as conn:
        await insert_closed(conn, made)
    await job.run_once()
    assert await is_right(engine)

    async with engine.begin() as conn:
        late = [structs.replace(one.session, late_entries=1, outcome="resolved", contained=True) for one in made[:50]]
        changed = [structs.replace(one, session=session) for one, session in zip(made[:50], late, strict=True)]
        await update_closed(conn, changed)
    async with engine.connect() as conn:
        assert await stale(conn) > 0
    await job.run_once()
    assert await is_right(engine)

    async with engine.begin() as conn:
        await conn.execute(text("DELETE FROM sessions WHERE user_id < 'user-3'"))
    await job.run_once()
    assert await is_right(engine)
    assert await job.run_once() == 0


async def test_a_crash_repeats_an_hour(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """A worker that dies before its commit leaves the notes; one that dies after it leaves nothing to repeat."""
    async with engine.begin() as conn:
        await insert_closed(conn, made)
    async with engine.connect() as conn:
        assert await roll_up(conn, last=await last_note(conn)) > 0
        await conn.rollback()
    async with engine.connect() as conn:
        assert (await conn.scalars(text("SELECT count(*) FROM session_hours"))).one() == 0
    await RollUp(engine).run_once()

    assert await is_right(engine)


async def test_a_session_that_is_committed_meanwhile_is_not_left_out(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """Its hour has a note already, which is taken before the session can be seen: it has a note of its own."""
    first, second = made[0], structs.replace(made[1], session=structs.replace(made[1].session, opened_at_ms=0))
    second = structs.replace(
        second, strand=first.strand, session=structs.replace(made[1].session, opened_at_ms=first.session.opened_at_ms)
    )
    async with engine.begin() as conn:
        await insert_closed(conn, [first])
    async with engine.connect() as writing:
        await insert_closed(writing, [second])
        assert await RollUp(engine).run_once() == 1
        await writing.commit()
    async with engine.connect() as conn:
        assert await stale(conn) == 1
    await RollUp(engine).run_once()

    assert await is_right(engine)


async def test_several_workers_at_once(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """Three roll up while sessions are inserted."""

    async def insert() -> None:
        for start in range(0, len(made), 20):
            async with engine.begin() as conn:
                await insert_closed(conn, made[start : start + 20])

    await asyncio.gather(insert(), *(RollUp(engine).run_once() for _ in range(3)))
    await asyncio.gather(*(RollUp(engine).run_once() for _ in range(3)))

    assert await is_right(engine)


async def test_a_wrong_hour_is_found_and_rebuilt(engine: AsyncEngine, made: list[ClosedSession], database_url: str) -> None:
    """Ones that were changed, by channel and by intent, one that is missing, and one that has no sessions."""
    latest = [one for one in made if one.session.opened_at_ms >= ms_of(LAST - timedelta(days=3))]
    async with engine.begin() as conn:
        await insert_closed(conn, latest)
    await RollUp(engine).run_once()
    async with engine.begin() as conn:
        hours = [row.hour for row in await conn.execute(text("SELECT DISTINCT hour FROM session_hours ORDER BY hour LIMIT 2"))]
        await conn.execute(text("UPDATE session_hours SET active_ms_counts[1] = 99 WHERE hour = :hour"), {"hour": hours[0]})
        await conn.execute(text("UPDATE session_intent_hours SET contained_part = 99 WHERE hour = :hour"), {"hour": hours[1]})
        await conn.execute(
            text("UPDATE session_hours SET hour = '2030-01-01' WHERE hour = (SELECT max(hour) FROM session_hours)")
        )
        missing = [row.hour for row in await conn.execute(text("SELECT max(hour) AS hour FROM session_intent_hours"))]
        await conn.execute(text("DELETE FROM session_intent_hours WHERE hour = :hour"), {"hour": missing[0]})
    console = Console()
    wrong = await stats.verify(database_url, console)
    rebuilt = await stats.rebuild(database_url, console)

    assert {hour for _, hour in wrong} >= {*hours, *missing, datetime(2030, 1, 1, tzinfo=UTC)}
    assert len(wrong) < 10
    assert rebuilt > 20
    assert await stats.verify(database_url, console) == []
    assert await is_right(engine)


async def test_noting_all_hours_changes_no_answer(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """As after the upgrade: everything is stale, and then nothing."""
    async with engine.begin() as conn:
        await insert_closed(conn, made)
        await note_all(conn, *ALL)
    await RollUp(engine).run_once()

    assert await is_right(engine)


def test_percentiles_are_within_the_stated_error() -> None:
    """Of random distributions over seven decades, against the exact ones; zeros are exact, and nothing has none."""
    random = Random(3)  # noqa: S311 - the same numbers each time
    for _ in range(200):
        values = sorted(int(10 ** random.uniform(0, 7)) if random.random() < 0.9 else 0 for _ in range(random.randrange(1, 300)))
        steps: dict[int, int] = {}
        for value in values:
            steps[step_of(value)] = steps.get(step_of(value), 0) + 1
        for at, near in zip((0.5, 0.9, 0.99), percentiles(sorted(steps.items())), strict=True):
            exact = values[-int(-len(values) * at // 1) - 1]
            assert near is not None
            assert abs(near - exact) <= exact * ERROR_PERCENT / 100 + 1

    assert list(percentiles([])) == [None, None, None]


def step_of(value: int) -> int:
    """By counting up, where the product takes a logarithm."""
    step, limit = 0, 1.0
    while value > limit * 1.02**step:
        step += 1
    return 0 if value < 1 else step + 1


async def test_an_hour_that_changes_all_the_time_ends_no_run_late(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """Each roll-up notes its hour anew, as an archivist that inserts without a pause: a run takes only the notes before it."""
    async with engine.begin() as conn:
        await insert_closed(conn, made)
        await conn.execute(
            text("""
            CREATE FUNCTION note_again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                INSERT INTO stale_hours (bot_id, hour) VALUES (NEW.bot_id, NEW.hour); RETURN NULL;
            END $$
            """)
        )
        await conn.execute(
            text("CREATE TRIGGER note_again AFTER INSERT ON session_hours FOR EACH ROW EXECUTE FUNCTION note_again()")
        )
    try:
        async with asyncio.timeout(60):
            assert await RollUp(engine).run_once() > 100
    finally:
        async with engine.begin() as conn:
            await conn.execute(text("DROP FUNCTION note_again CASCADE"))
    await RollUp(engine).run_once()

    assert await is_right(engine)


async def test_intents_are_answered_from_their_table(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """A number that is written there by hand is in the answer; percentiles are of the sessions, and exact."""
    async with engine.begin() as conn:
        await insert_closed(conn, made)
    await RollUp(engine).run_once()
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE session_intent_hours SET sessions = sessions * 1000 WHERE intent = 'buy'"))
    question = Question(
        wanted=SessionFilter(intent="buy"),
        period=Period(*ALL),
        time_zone="UTC",
        metrics=[METRICS["sessions"], METRICS["active_ms"]],
        dimensions=[DIMENSIONS["intent"]],
        time=None,
        top=3,
        compare=False,
        listed=ListAddress("/v1/sessions", {}, frozenset()),
    )
    answered = await answer(engine, question)
    bought = [one for one in made if one.session.intent == "buy"]

    assert [group["metrics"]["sessions"]["value"] for group in answered["groups"]] == [len(bought) * 1000]
    assert answered["groups"][0]["metrics"]["active_ms"]["count"] == sum(one.session.counted for one in bought)
    assert answered["percentile_error_percent"] == 0


async def test_a_summary_is_the_same_from_hours_and_from_sessions(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """Of periods that cut hours, with stale hours and without, and without an end; the filter by `active_ms` leaves none out."""
    random = Random(11)  # noqa: S311 - the same periods each time
    wanted = [SessionFilter(), SessionFilter(bots=frozenset({made[0].strand.bot}), developer=False, reason="inactivity")]
    for _ in range(6):
        bounds = sorted(ms_of(FIRST) + random.randrange(ms_of(LAST) - ms_of(FIRST)) for _ in range(2))
        wanted.append(SessionFilter(developer=False, opened_from_ms=bounds[0], opened_to_ms=bounds[1]))
    async with engine.begin() as conn:
        await insert_closed(conn, made[:200])
    await RollUp(engine).run_once()
    async with engine.begin() as conn:
        await insert_closed(conn, made)

    for stale_too in (True, False):
        for one in wanted:
            counted = await summarise(engine, structs.replace(one, active_ms_from=0))
            assert await summarise(engine, one) == counted, (stale_too, one)
        await RollUp(engine).run_once()
    assert (await summarise(engine, wanted[0])).sessions > 200


async def test_a_summary_is_read_from_the_roll_up(engine: AsyncEngine, made: list[ClosedSession]) -> None:
    """A number that is written there by hand is in it."""
    async with engine.begin() as conn:
        await insert_closed(conn, made)
    await RollUp(engine).run_once()
    before = await summarise(engine, SessionFilter())
    async with engine.begin() as conn:
        await conn.execute(text("UPDATE session_outcome_hours SET interactions = interactions + 1000"))

    assert (await summarise(engine, SessionFilter())).interactions > before.interactions + 1000
