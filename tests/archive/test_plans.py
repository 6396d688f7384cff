"""Lists cost what they return: a filter that matches little or nothing reads no months of sessions."""

from typing import Any, get_args

from msgspec import json
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import session_reads
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
            f"{asked} of {bots or 'all'}": await blocks_of(conn, SessionFilter(bots=bots, **asked))
            for asked in FILTERS
            for bots in (None, frozenset({LARGE}))
        }
        for order in get_args(SessionOrder):
            read[f"all by {order}"] = await blocks_of(conn, SessionFilter(), order=order)
        # A user with a fifth of all sessions, by the plan for any user that Postgres makes after some uses.
        await conn.execute(text("SET plan_cache_mode = force_generic_plan"))
        read["one user of all"] = await blocks_of(conn, SessionFilter(user_id="user-1"))

    assert whole is not None
    assert whole > 3 * MOST_BLOCKS
    assert {name: blocks for name, blocks in read.items() if blocks >= MOST_BLOCKS} == {}


async def blocks_of(conn: AsyncConnection, wanted: SessionFilter, order: SessionOrder = "-opened_at") -> int:
    """How many blocks the first page of a list reads."""
    statements: list[tuple[str, Any]] = []

    def keep(_conn: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:  # noqa: ANN401 - the event's
        statements.append((statement, parameters))

    event.listen(conn.sync_connection, "before_cursor_execute", keep)
    await session_reads.page(conn, wanted, after=None, limit=51, order=order)
    event.remove(conn.sync_connection, "before_cursor_execute", keep)
    statement, parameters = statements[0]
    await conn.exec_driver_sql(f"PREPARE listed AS {statement}")
    literals = ", ".join(f"'{value}'" for value in parameters)
    plan = (await conn.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE listed({literals})")).scalar_one()
    await conn.exec_driver_sql("DEALLOCATE listed")
    top = (json.decode(plan) if isinstance(plan, str) else plan)[0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])
