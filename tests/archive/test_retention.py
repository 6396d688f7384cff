"""Sessions, messages and deliveries are deleted when a bot's retention says so, no sooner, and the numbers follow."""

from collections.abc import Iterable
from datetime import UTC, datetime

import pytest
from msgspec import json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import retention
from app.archive.engine import Lock, take_lock
from app.archive.retention import Retention
from app.archive.rollup import RollUp, wrong_hours
from app.archive.sessions import ClosedSession, insert_closed
from app.domain.instants import DAY_MS, ms_of
from app.metrics import RETENTION_DELETED, RETENTION_DROPPED
from tests.closed import closed_session

NOW = ms_of(datetime(2026, 11, 20, tzinfo=UTC))
SEPTEMBER, NOVEMBER_5, NOVEMBER_19 = (ms_of(datetime(2026, month, day, tzinfo=UTC)) for month, day in ((9, 1), (11, 5), (11, 19)))
OLD, MIDDLE, NEW = range(3)
OPENED = (SEPTEMBER, NOVEMBER_5, NOVEMBER_19)


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_PORTION", 2)


def of_bot(bot: str, count: int = 3) -> list[ClosedSession]:
    """So many sessions of each age."""
    return [
        closed_session(10 * age + number, bot=bot, opened_at_ms=opened + number)
        for age, opened in enumerate(OPENED)
        for number in range(count)
    ]


async def archive(engine: AsyncEngine, **kept: dict[str, int]) -> None:
    """Sessions of these bots, which have this retention; their hours are rolled up."""
    async with engine.begin() as conn:
        for bot, days in kept.items():
            bots = "INSERT INTO bots (id, name, sandbox, clock_mode, retention_days) VALUES (:id, :id, :box, :mode, :days)"
            box = bot == "sandbox"
            values = {"id": bot, "box": box, "mode": "manual" if box else None, "days": json.encode(days).decode()}
            await conn.execute(text(bots.replace(":days", "CAST(:days AS jsonb)")), values)
            await insert_closed(conn, of_bot(bot))
    await RollUp(engine).run_once()


async def left(engine: AsyncEngine, table: str) -> dict[tuple[str, int], int]:
    """How many rows there are, by bot and age."""
    found: dict[tuple[str, int], int] = {}
    column = "s.id" if table == "sessions" else "m.session_id"
    joined = "sessions s" if table == "sessions" else "messages m JOIN sessions s ON s.id = m.session_id"
    async with engine.connect() as conn:
        rows = await conn.execute(text(f"SELECT s.bot_id, s.opened_at, {column} FROM {joined}"))  # noqa: S608 - as above
        for bot, opened_at, _ in rows:
            age = max(age for age, opened in enumerate(OPENED) if opened <= ms_of(opened_at))
            found[bot, age] = found.get((bot, age), 0) + 1
    return found


async def months(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as conn:
        return set(await conn.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relname LIKE '%2026%'")))


async def rolled_up(engine: AsyncEngine) -> dict[str, int]:
    """The sessions of each bot by the roll-up, which is right."""
    await RollUp(engine).run_once()
    async with engine.connect() as conn:
        assert await wrong_hours(conn, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)) == []
        rows = await conn.execute(text("SELECT bot_id, sum(sessions)::int FROM session_hours GROUP BY bot_id"))
        return {row.bot_id: row.sum for row in rows}


def each_of(count: int, **ages: Iterable[int]) -> dict[tuple[str, int], int]:
    """So many of each of these ages, by bot."""
    return {(bot, age): count for bot, each in ages.items() for age in each}


async def test_rows_go_by_bot_and_the_numbers_follow(engine: AsyncEngine) -> None:
    """A bot without a limit keeps all; messages may go before their sessions; the roll-up counts what is left."""
    await archive(engine, shop={"sessions": 30, "messages": 10}, bank={})
    before = await rolled_up(engine)
    job = Retention(engine)
    deleted = await job.run_once(NOW)
    again = await job.run_once(NOW)
    after = await rolled_up(engine)

    assert before == {"shop": 9, "bank": 9}
    assert after == {"shop": 6, "bank": 9}
    assert await left(engine, "sessions") == each_of(3, shop=(MIDDLE, NEW), bank=(OLD, MIDDLE, NEW))
    assert await left(engine, "messages") == each_of(6, shop=(NEW,), bank=(OLD, MIDDLE, NEW))
    assert deleted == {"sessions": 3, "messages": 12}
    assert again == {}
    assert RETENTION_DELETED.labels("sessions")._value.get() >= 3
    assert await job.run_once(NOW + 20 * DAY_MS) == {"sessions": 3, "messages": 6}
    assert await rolled_up(engine) == {"shop": 3, "bank": 9}


async def test_a_month_of_which_nothing_is_kept_is_dropped_whole(engine: AsyncEngine) -> None:
    """Its hours leave the roll-up; where messages alone go, the sessions stay; an old session that comes finds a place."""
    await archive(engine, shop={"sessions": 30, "messages": 2}, bank={"sessions": 40})
    dropped = RETENTION_DROPPED._value.get()
    deleted = await Retention(engine).run_once(NOW)

    assert await rolled_up(engine) == {"shop": 6, "bank": 6}
    assert {"sessions_2026_09", "messages_2026_09"}.isdisjoint(await months(engine))
    assert {"sessions_2026_11", "messages_2026_11"} <= await months(engine)
    assert RETENTION_DROPPED._value.get() == dropped + 2
    assert deleted == {"messages": 6}

    async with engine.begin() as conn:
        assert await insert_closed(conn, of_bot("shop", 1))
    assert "sessions_2026_09" in await months(engine)
    assert await Retention(engine).run_once(NOW) == {}
    assert "sessions_2026_09" not in await months(engine)
    assert await rolled_up(engine) == {"shop": 6, "bank": 6}


async def test_a_month_of_messages_is_dropped_where_sessions_stay(engine: AsyncEngine) -> None:
    await archive(engine, shop={"messages": 30})
    await Retention(engine).run_once(NOW)

    assert "messages_2026_09" not in await months(engine)
    assert "sessions_2026_09" in await months(engine)
    assert await rolled_up(engine) == {"shop": 9}


async def test_one_worker_at_a_time_deletes(engine: AsyncEngine) -> None:
    """While another one has the lock, a run does nothing; the next one does it."""
    await archive(engine, shop={"sessions": 30})
    async with engine.begin() as conn:
        await take_lock(conn, Lock.RETENTION)
        assert await Retention(engine).run_once(NOW) == {}
        assert "sessions_2026_09" in await months(engine)
    await Retention(engine).run_once(NOW)

    assert await rolled_up(engine) == {"shop": 6}


async def test_a_sandbox_bot_s_sessions_are_as_old_as_their_rows(engine: AsyncEngine) -> None:
    """Their own instants can be anything."""
    await archive(engine, sandbox={"sessions": 30})

    assert await Retention(engine).run_once(NOW) == {}
    assert await Retention(engine).run_once(ms_of(datetime(2100, 1, 1, tzinfo=UTC))) == {}
    assert await rolled_up(engine) == {}


async def test_deliveries_go_by_their_own_limit(engine: AsyncEngine) -> None:
    """Neither a pending one nor another bot's; the attempts go with them, and so do entries without a session."""
    await archive(engine, shop={"deliveries": 10, "messages": 10}, bank={})
    row = "INSERT INTO deliveries (id, endpoint_id, bot_id, event, body, status, created_at) VALUES "
    entry = "INSERT INTO unassigned_entries (id, bot_id, received_at, reason, message_id, entry) VALUES "
    async with engine.begin() as conn:
        for bot in ("shop", "bank"):
            for at, status in ((MIDDLE, "delivered"), (MIDDLE, "pending"), (NEW, "failed")):
                at_s = OPENED[at] // 1000
                await conn.execute(
                    text(f"{row} (gen_random_uuid(), gen_random_uuid(), '{bot}', 'x', '{{}}', '{status}', to_timestamp({at_s}))")
                )
            await conn.execute(text(f"{entry} (gen_random_uuid(), '{bot}', to_timestamp({SEPTEMBER // 1000}), 'x', 'm', '{{}}')"))
        await conn.execute(text("INSERT INTO attempts (delivery_id, attempt, started_at) SELECT id, 1, now() FROM deliveries"))
    deleted = await Retention(engine).run_once(NOW)

    assert (deleted["deliveries"], deleted["unassigned_entries"]) == (1, 1)
    async with engine.connect() as conn:
        rows = await conn.execute(
            text("SELECT bot_id, d.status FROM deliveries d JOIN attempts a ON a.delivery_id = d.id ORDER BY 1, 2")
        )
        assert [tuple(row) for row in rows] == [
            ("bank", "delivered"), ("bank", "failed"), ("bank", "pending"), ("shop", "failed"), ("shop", "pending")
        ]  # fmt: skip
