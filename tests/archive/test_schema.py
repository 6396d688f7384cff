"""The schema: made by the migrations alone, equal to the tables that the code knows, and up to date or not."""

import asyncio

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from msgspec import convert, json, structs, to_builtins
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.engine import Lock, alembic_config, make_engine, migrate_async, schema_is_current
from app.archive.partitions import ensure_months, is_partition, month_of
from app.archive.tables import metadata
from app.clock import wall_ms
from app.domain.records import Outcome, Reason, Session

_WORN_DELIVERY = """
    WITH endpoint AS (
        INSERT INTO endpoints (id, bot_id, url, events, secret)
        VALUES (gen_random_uuid(), 'shop', 'http://127.0.0.1/', '{}', 'whsec_') RETURNING id
    ), delivery AS (
        INSERT INTO deliveries (id, endpoint_id, bot_id, event, body, attempt, uncounted)
        SELECT gen_random_uuid(), id, 'shop', 'session.closed', '{}', 32767, 32767 FROM endpoint RETURNING id
    )
    INSERT INTO attempts (delivery_id, attempt, started_at) SELECT id, 32767, now() FROM delivery
"""


def differences(conn: Connection) -> list[object]:
    def include(name: str | None, kind: str, _parents: object) -> bool:
        return not (kind == "table" and name is not None and is_partition(name))

    context = MigrationContext.configure(conn, opts={"include_name": include, "compare_server_default": True})
    return list(compare_metadata(context, metadata))


def migrate_to(conn: Connection, version: str, *, down: bool = False) -> None:
    config = alembic_config()
    config.attributes["connection"] = conn
    (command.downgrade if down else command.upgrade)(config, version)


async def test_the_migrations_make_the_tables_that_the_code_knows(database_url: str) -> None:
    """No column, key, index or default is in the one and not in the other."""
    engine = make_engine(database_url)
    async with engine.connect() as conn:
        found = await conn.run_sync(differences)
    await engine.dispose()

    assert found == []


async def test_the_triggers_of_the_configuration_wait_for_a_change_of_it(engine: AsyncEngine) -> None:
    """The migration that made them names the lock by its number: it is the lock of `ConfigWriter`, and no other."""
    async with engine.connect() as conn:
        body = await conn.scalar(text("SELECT prosrc FROM pg_proc WHERE prosrc LIKE '%pg_advisory_xact_lock%'"))

    assert f"pg_advisory_xact_lock({Lock.CONFIG.value})" in str(body)


async def test_readiness_knows_an_old_schema_from_a_new_one(database_url: str) -> None:
    """A process never calls itself ready on a schema that it was not written for."""
    engine = make_engine(database_url)
    async with engine.connect() as conn:
        new = await schema_is_current(conn)
        await conn.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        old = await schema_is_current(conn)
    await engine.dispose()

    assert (new, old) == (True, False)


async def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    """From an empty database, five starters end with one schema and no error."""
    engine = make_engine(database_url)
    async with engine.begin() as conn:
        await conn.execute(text("DROP SCHEMA public CASCADE"))
        await conn.execute(text("CREATE SCHEMA public"))
    await asyncio.gather(*(migrate_async(database_url) for _ in range(5)))
    async with engine.connect() as conn:
        matches = await schema_is_current(conn)
        instances = await conn.scalar(text("SELECT count(*) FROM instance"))
    await engine.dispose()

    assert matches
    assert instances == 1


async def test_wider_counts_of_attempts_keep_what_was_counted(database_url: str) -> None:
    """A row that had come to the end of its two bytes goes on counting."""
    engine = make_engine(database_url)
    async with engine.begin() as conn:
        await conn.run_sync(migrate_to, "0003", down=True)
        await conn.execute(text("INSERT INTO bots (id, name) VALUES ('shop', 'shop')"))
        await conn.execute(text(_WORN_DELIVERY))
    async with engine.begin() as conn:
        await conn.run_sync(migrate_to, "head")
    async with engine.begin() as conn:
        counted = await conn.execute(
            text("UPDATE deliveries SET attempt = attempt + 1, uncounted = attempt + 1 RETURNING attempt, uncounted")
        )
        kept = await conn.execute(text("UPDATE attempts SET attempt = attempt + 1 RETURNING attempt"))
        rows = counted.all(), kept.all()
    await engine.dispose()

    assert rows == ([(32_768, 32_768)], [(32_768,)])


_SESSION_OF_0_1_0 = """
    INSERT INTO sessions (opened_at, id, bot_id, conversation_id, user_id, channel, closed_at, reason, opening_rule, closing_rule,
        policy_version, interactive, developer, counted, trade, tags, entries, user_entries, bot_entries, agent_entries,
        system_entries, interactions, billing_sessions, detail)
    VALUES ('2026-11-16Z', '01a00000-0000-7000-8000-000000000001', 'shop', 'c', 'u', 'web', '2026-11-16Z', 'ended', 'B04', 'B10',
        1, true, false, true, 'bot', '{}', 3, 2, 1, 0, 0, 3, 1, CAST(:detail AS jsonb))
"""
_ENDED_OTHERWISE = """
    UPDATE sessions SET id = CAST('01a00000-0000-7000-9000-' || lpad(:id, 12, '0') AS uuid),
        outcome = :outcome, reason = :reason, contained = true
    WHERE id = '01a00000-0000-7000-8000-000000000001'
"""


async def test_contained_of_0_1_0_is_settled_by_the_ruling_of_today(database_url: str) -> None:
    """Ruling 5: what was dropped, abandoned or interrupted is not contained, in the column and in the record; the rest stays."""
    cases: list[tuple[Outcome, Reason, bool]] = [
        ("completed", "inactivity", True),
        ("dropped", "inactivity", False),
        ("abandoned", "inactivity", False),
        ("completed", "abandoned", False),
        ("completed", "interrupted", False),
    ]
    engine = make_engine(database_url)
    async with engine.begin() as conn:
        await conn.run_sync(migrate_to, "0008", down=True)
        await ensure_months(conn, [(2026, 11)])
        for number, (outcome, reason, _) in enumerate(cases):
            closed = Session("id", "u", "web", 1_794_787_200_000, outcome=outcome, reason=reason, contained=True)
            values = {"detail": json.encode(closed).decode(), "outcome": outcome, "reason": reason, "id": str(number)}
            await conn.execute(text(_SESSION_OF_0_1_0), values)
            await conn.execute(text(_ENDED_OTHERWISE), values)
    async with engine.begin() as conn:
        await conn.run_sync(migrate_to, "head")
        rows = (await conn.execute(text("SELECT contained, detail FROM sessions ORDER BY id"))).all()
    await engine.dispose()

    assert [row.contained for row in rows] == [contained for *_, contained in cases]
    assert [convert(row.detail, Session).contained for row in rows] == [contained for *_, contained in cases]


_DELIVERY_OF_0_1_0 = """
    INSERT INTO deliveries (id, endpoint_id, bot_id, event, body, status)
    SELECT gen_random_uuid(), id, 'shop', 'session.started', '{"type":"session.started","data":{}}', status
    FROM endpoints, unnest('{pending,delivered}'::text[]) AS status
"""


async def test_sessions_of_0_1_0_get_the_columns_that_it_did_not_have(database_url: str) -> None:
    """From their records; and its event `session.started` is called `session.opened` in all that is still to be sent."""
    opened_ms = 1_794_787_200_000
    closed = Session("id", "u", "web", opened_ms, closed_at_ms=opened_ms + 9_000, closed_by="m3")
    closed = structs.replace(closed, last_user_at_ms=opened_ms + 5_000, last_bot_at_ms=opened_ms + 2_000)
    detail = json.encode(to_builtins(closed)[: Session.__struct_fields__.index("survey_answered_at_ms") + 1]).decode()

    engine = make_engine(database_url)
    async with engine.begin() as conn:
        await conn.run_sync(migrate_to, "0005", down=True)
        await ensure_months(conn, [(2026, 11)])
        await conn.execute(text(_SESSION_OF_0_1_0), {"detail": detail})
        await conn.execute(text("INSERT INTO bots (id, name) VALUES ('shop', 'shop')"))
        await conn.execute(
            text("""INSERT INTO endpoints (id, bot_id, url, events, secret)
            VALUES (gen_random_uuid(), 'shop', 'http://127.0.0.1/', '{session.closed,session.started}', 'whsec_')""")
        )
        await conn.execute(text(_DELIVERY_OF_0_1_0))
    async with engine.begin() as conn:
        await conn.run_sync(migrate_to, "head")
        row = (await conn.execute(text("SELECT active_ms, idle_ms, closed_by, late_entries, intents FROM sessions"))).one()
        events = await conn.scalar(text("SELECT events FROM endpoints"))
        deliveries = (await conn.execute(text("SELECT status, event, body FROM deliveries ORDER BY status"))).all()
    await engine.dispose()

    assert tuple(row) == (5_000, 4_000, "m3", 0, [])
    assert events == ["session.closed", "session.opened"]
    assert [tuple(delivery) for delivery in deliveries] == [
        ("delivered", "session.opened", '{"type":"session.started","data":{}}'),
        ("pending", "session.opened", '{"type":"session.opened","data":{}}'),
    ]


def test_every_column_says_what_it_holds() -> None:
    """`doc` of a column is its one description."""
    missing = [f"{table.name}.{column.name}" for table in metadata.tables.values() for column in table.c if not column.doc]

    assert missing == []


async def test_archivists_that_race_for_a_month_make_it_once(database_url: str) -> None:
    """Eight of them at once: each finds its months there afterwards, and none fails. A year far off is one partition."""
    engine = make_engine(database_url)
    this_year, _ = month_of(wall_ms())

    async def race() -> None:
        async with engine.begin() as conn:
            await ensure_months(conn, [(this_year, 12), (this_year + 1, 1), (2004, 3), (2004, 11)])

    await asyncio.gather(*(race() for _ in range(8)))
    async with engine.connect() as conn:
        made = await conn.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY relname"))
        names = made.all()
    await engine.dispose()

    ours = [f"{this_year}_12", f"{this_year + 1}_01"]
    assert names == [f"{table}_{part}" for table in ("messages", "sessions") for part in ("2004", *ours)]


async def test_a_year_that_has_months_gets_more_of_them(database_url: str) -> None:
    """Partitions never overlap: what was made by month, when the year was near or by an older version, goes on by month."""
    engine = make_engine(database_url)
    async with engine.begin() as conn:
        for table in ("sessions", "messages"):
            await conn.execute(
                text(f"CREATE TABLE {table}_2004_11 PARTITION OF {table} FOR VALUES FROM ('2004-11-01Z') TO ('2004-12-01Z')")
            )
        await ensure_months(conn, [(2004, 11), (2004, 12), (2005, 6)])
        found = await conn.scalars(text("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' ORDER BY relname"))
        names = found.all()
    await engine.dispose()

    assert names == [f"{table}_{part}" for table in ("messages", "sessions") for part in ("2004_11", "2004_12", "2005")]


async def test_a_new_month_waits_for_no_reader_and_no_writer(database_url: str) -> None:
    """A partition is attached while another transaction has read from and written to the table."""
    engine = make_engine(database_url)
    async with engine.begin() as conn:
        await ensure_months(conn, [(2026, 11)])
    async with engine.connect() as reader, engine.begin() as maker:
        await reader.execute(text("SELECT count(*) FROM sessions"))
        await reader.execute(text("DELETE FROM messages"))
        await maker.execute(text("SET LOCAL lock_timeout = '2s'"))
        await ensure_months(maker, [(2026, 12)])
    await engine.dispose()
