"""The views for reports: every column has a comment and a value, the guide lists them, and the reader reads nothing else."""

import importlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.sessions import ClosedSession, insert_closed
from app.domain.instants import rfc3339
from app.domain.records import Session
from app.domain.session_view import session_view
from tests.closed import NOVEMBER_MS, closed_session, message

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
VIEWS = ("sessions", "messages", "daily")

COLUMNS = text("""
    SELECT c.column_name, col_description(('adjourn_v1.' || c.table_name)::regclass, c.ordinal_position)
    FROM information_schema.columns c WHERE c.table_schema = 'adjourn_v1' AND c.table_name = :view ORDER BY c.ordinal_position
""")


def different() -> ClosedSession:
    """A session in which every instant and number is another."""
    instants = [name for name in Session.__struct_fields__ if name.endswith("_at_ms") and name != "opened_at_ms"]
    fields: dict[str, Any] = {name: NOVEMBER_MS + 1_000 * number for number, name in enumerate(instants, start=1)}
    fields |= {
        "closed_at_ms": NOVEMBER_MS + 900_000,
        "interactive": True,
        "previous_session_id": "01a1fd8c-6900-7dff-8007-b98ca63b51ae",
    }
    counts = ("user_entries", "bot_entries", "agent_entries", "system_entries", "interactions", "billing_sessions")
    fields |= {name: 11 + number for number, name in enumerate(counts)} | {"entries": 50, "late_entries": 7}
    fields |= {"first_response_ms": 321, "language": "de", "intent": "buy", "intents": ("a", "buy"), "tags": ("x",)}
    fields |= {"session_metadata": {"phone": "1"}, "closed_by": "m9", "thread": "window"}
    one = closed_session(1, messages=0, **fields)
    said = message(one.session.id, "m1", sequence=1, at_ms=NOVEMBER_MS + 5, rest={"source": "click", "metadata": {"n": 1}})
    return ClosedSession(one.strand, one.session, [said])


@pytest.fixture
async def rows(engine: AsyncEngine) -> dict[str, dict[str, Any]]:
    """The one row of each view."""
    async with engine.begin() as conn:
        await insert_closed(conn, [different()])
        return {view: dict((await conn.execute(text(f"SELECT * FROM adjourn_v1.{view}"))).one()._mapping) for view in VIEWS}  # noqa: S608 - names of ours


@pytest.mark.parametrize("view", VIEWS)
async def test_the_guide_lists_every_column_with_its_comment(engine: AsyncEngine, view: str) -> None:
    async with engine.connect() as conn:
        found = [(name, meaning) for name, meaning in await conn.execute(COLUMNS, {"view": view})]
    listed = GUIDE.split(f"### `adjourn_v1.{view}`")[1].split("| --- | --- |\n")[1].split("\n\n")[0].strip().splitlines()

    assert all(meaning for _, meaning in found)
    assert listed == [f"| `{name}` | {meaning} |" for name, meaning in found]


async def test_each_value_is_the_api_s(rows: dict[str, dict[str, Any]]) -> None:
    """By name, and by role where the API has an object of roles; two instants swapped would differ."""
    one = different()
    view = session_view(one.strand, one.session)
    flat = {"session_id": view.pop("id")} | view
    for role in ("user", "bot", "agent", "system"):
        flat |= {f"{role}_entries": view["entries_of"][role]}
        flat |= {f"first_{role}_at": view["first_entry_at_of"][role], f"last_{role}_at": view["last_entry_at_of"][role]}
    row = {name: _as_json(value) for name, value in rows["sessions"].items()}

    assert {name: row[name] for name in row.keys() & flat.keys()} == {name: flat[name] for name in row.keys() & flat.keys()}
    assert row.keys() - flat.keys() == {"continuation_of", "archived_at"}
    # The view lacks the objects of roles, which it has as columns, and the values that are the same for every closed session.
    assert flat.keys() - row.keys() == {"status", "closes_at", "entries_of", "first_entry_at_of", "last_entry_at_of"}
    assert rows["messages"]["metadata"] == {"n": 1}
    assert (rows["messages"]["source"], rows["messages"]["channel"], rows["messages"]["intent_valid"]) == ("click", "web", True)
    assert rows["daily"]["day"] == datetime.fromtimestamp(NOVEMBER_MS / 1000, UTC).date()
    assert (rows["daily"]["sessions"], rows["daily"]["entries"], rows["daily"]["first_response_ms"]) == (1, 50, 321)


def _as_json(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(round(value.timestamp() * 1000))
    return value if value is None or isinstance(value, bool | int | str | list | dict) else str(value)


async def test_the_reader_reads_the_views_and_nothing_else(engine: AsyncEngine, rows: dict[str, dict[str, Any]]) -> None:
    """Neither tables nor keys, and it changes nothing."""
    assert rows
    async with engine.connect() as conn:
        await conn.execute(text("SET ROLE adjourn_reader"))
        for view in VIEWS:
            assert await conn.scalar(text(f"SELECT count(*) FROM adjourn_v1.{view}")) == 1  # noqa: S608 - names of ours
        await conn.rollback()
        for forbidden in (
            "SELECT * FROM sessions",
            "SELECT * FROM api_keys",
            "SELECT * FROM endpoints",
            "DELETE FROM adjourn_v1.sessions",
            "UPDATE adjourn_v1.sessions SET intent = 'x'",
            "CREATE TABLE adjourn_v1.mine (a int)",
        ):
            await conn.execute(text("SET ROLE adjourn_reader"))
            with pytest.raises(DBAPIError, match="permission denied"):
                await conn.execute(text(forbidden))
            await conn.rollback()


def test_positions_of_the_record_are_those_of_its_fields() -> None:
    """The views read by position what has no column; the record may grow, but its fields keep their places."""
    views = importlib.import_module("migrations.versions.0008_views")
    fields = Session.__struct_fields__
    for name, (sql, _) in views.SESSIONS.items():
        if "detail->>" in sql:
            position = int(sql.split("detail->>")[1].split(")")[0])
            assert fields[position].removesuffix("_ms") == name, name


async def test_the_guide_s_statements_run(engine: AsyncEngine, rows: dict[str, dict[str, Any]]) -> None:
    """The user that it makes runs the query that it shows."""
    make_user, query = [block.split("```")[0] for block in GUIDE.split("```sql\n")[1:]]
    async with engine.connect() as conn:
        for statement in make_user.strip().split(";\n"):
            await conn.execute(text(statement))
        await conn.execute(text("SET ROLE reports"))
        found = (await conn.execute(text(query.replace("now()", "TIMESTAMPTZ '2026-11-20'")))).all()
        await conn.rollback()

    assert rows
    assert [tuple(row)[1:] for row in found] == [("web", 1)]
