"""The promise of `tests/conftest.py`: what one test leaves behind, the next does not see."""

from __future__ import annotations

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


@pytest.mark.parametrize("round_", (1, 2))
def test_redis_is_empty_for_each_test(redis_url: str, round_: int) -> None:
    """A key written by the first round is not there in the second, and Alembic's is in both."""
    with redis.Redis.from_url(redis_url) as client:
        before = client.dbsize()
        client.set("left-behind", round_)

    assert before == 0


@pytest.mark.parametrize("round_", (1, 2))
async def test_a_database_is_fresh_for_each_test(database_url: str, round_: int) -> None:
    """A table made by the first round is not there in the second, and Alembic's is in both."""
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        tables = set(await connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")))
        await connection.execute(text(f"CREATE TABLE left_behind_{round_} ()"))
    await engine.dispose()

    assert not {name for name in tables if name.startswith("left_behind")}
    assert "alembic_version" in tables
