"""Lists cost what they return: a filter that matches little or nothing reads no months of sessions."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, get_args

from msgspec import json
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import audit, session_reads
from app.archive.audit import AuditFilter
from app.archive.session_reads import SessionFilter, SessionOrder
from app.archive.sessions import insert_closed
from bench.fill import LARGE, closed_sessions

MOST_BLOCKS = 250
"""Thirteen months, and a few blocks of an index in each; the sessions themselves are in three times as many and more."""

FILTERS: tuple[dict[str, Any], ...] = (
    {"channel": "fax"},
    {"channel": "twitter"},
    {"reason": "survey_answered"},
    {"reason": "refresh"},
    {"reason": "inactivity"},
    {"outcome": "abandoned"},
    {"intent": "nothing"},
    {"reason": "interrupted", "channel": "twitter"},
    {"user_id": "nobody"},
    {"metadata": {"number": "7"}},
    {"developer": True},
)


async def test_a_page_reads_few_blocks(engine: AsyncEngine) -> None:
    """By the plan that Postgres reports of the statement that the list sends, for all bots and for one."""
    async with engine.begin() as conn:
        await insert_closed(conn, list(closed_sessions(8_000)))
    async with engine.connect() as plain:
        conn = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await conn.execute(text("VACUUM (ANALYZE) sessions"))
        whole = await conn.scalar(text("SELECT sum(pg_relation_size(relid)) / 8192 FROM pg_partition_tree('sessions')"))
        read = {
            f"{asked} of {bots or 'all'}": await blocks_of(conn, first_page(SessionFilter(bots=bots, **asked)))
            for asked in FILTERS
            for bots in (None, frozenset({LARGE}))
        }
        for order in get_args(SessionOrder):
            read[f"all by {order}"] = await blocks_of(conn, first_page(SessionFilter(), order=order))
        # A user with a fifth of all sessions, by the plan for any user that Postgres makes after some uses.
        await conn.execute(text("SET plan_cache_mode = force_generic_plan"))
        read["one user of all"] = await blocks_of(conn, first_page(SessionFilter(user_id="user-1")))

    assert whole is not None
    assert whole > 3 * MOST_BLOCKS
    assert {name: blocks for name, blocks in read.items() if blocks >= MOST_BLOCKS} == {}


async def test_a_page_of_the_audit_log_reads_few_blocks(engine: AsyncEngine) -> None:
    """By each filter, of entries that are rare, or old, or not there at all."""
    async with engine.begin() as conn:
        await conn.execute(_MANY_CHANGES)
    async with engine.connect() as plain:
        conn = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await conn.execute(text("VACUUM (ANALYZE) audit_log"))
        whole = await conn.scalar(text("SELECT pg_relation_size('audit_log') / 8192"))
        read = {
            str(wanted): await blocks_of(conn, partial(audit.page, wanted=wanted, before=None, limit=51)) for wanted in _AUDITED
        }

    assert {name for wanted in _AUDITED for name in wanted.__struct_fields__ if getattr(wanted, name)} == {
        *AuditFilter.__struct_fields__
    }
    assert whole is not None
    assert whole > 2 * MOST_BLOCKS
    assert {name: blocks for name, blocks in read.items() if blocks >= MOST_BLOCKS} == {}


_MANY_CHANGES = text("""
    INSERT INTO audit_log (at, key_id, actor, action, bot_id, target)
    SELECT timestamptz '2026-01-01' + number * interval '1 minute', md5((number / 200)::text)::uuid, 'key',
           CASE WHEN number % 9000 = 0 THEN 'key.revoked' ELSE 'session.closed' END, 'bot-' || number / 15000, number
    FROM generate_series(1, 60000) AS number
""")
_FIRST_KEY = "cfcd2084-95d5-65ef-66e7-dff9f98764da"  # md5 of 0
_NEW_YEAR_MS = 1_767_225_600_000
_AUDITED = (
    AuditFilter(key_id=_FIRST_KEY),
    AuditFilter(key_id="00000000-0000-7000-8000-000000000000"),
    AuditFilter(action="key.revoked"),
    AuditFilter(action="no.such"),
    AuditFilter(target="77"),
    AuditFilter(target="none"),
    AuditFilter(bot="bot-0"),
    AuditFilter(bots=frozenset({"bot-0"})),
    AuditFilter(bots=frozenset({"none"}), action="session.closed"),
    AuditFilter(to_ms=_NEW_YEAR_MS + 3_600_000),
    AuditFilter(from_ms=_NEW_YEAR_MS + 3_600_000, to_ms=_NEW_YEAR_MS + 7_200_000),
    AuditFilter(from_ms=_NEW_YEAR_MS * 2),
)


def first_page(wanted: SessionFilter, order: SessionOrder = "-opened_at") -> Callable[[AsyncConnection], Awaitable[object]]:
    """The first page of a list of sessions."""
    return partial(session_reads.page, wanted=wanted, after=None, limit=51, order=order)


async def blocks_of(conn: AsyncConnection, ask: Callable[[AsyncConnection], Awaitable[object]]) -> int:
    """How many blocks the statement of a list reads."""
    statements: list[tuple[str, Any]] = []

    def keep(_conn: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:  # noqa: ANN401 - the event's
        statements.append((statement, parameters))

    event.listen(conn.sync_connection, "before_cursor_execute", keep)
    await ask(conn)
    event.remove(conn.sync_connection, "before_cursor_execute", keep)
    statement, parameters = statements[0]
    await conn.exec_driver_sql(f"PREPARE listed AS {statement}")
    literals = ", ".join(f"'{value}'" for value in parameters)
    plan = (await conn.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE listed({literals})")).scalar_one()
    await conn.exec_driver_sql("DEALLOCATE listed")
    top = (json.decode(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
