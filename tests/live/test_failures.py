"""The classifier of exceptions, on errors that real servers give and on those of our own code."""

import asyncpg
import pytest
import redis.asyncio
from msgspec import ValidationError
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy import text

from app.archive.engine import make_engine
from app.domain.errors import StateTooLarge
from app.errors import Conflict, Unavailable
from app.failures import QUERY_CANCELED, BadData, Failure, failure_of, sqlstate_of
from app.live.pipe import Pipe


@pytest.mark.parametrize(
    "error",
    (
        Unavailable("no"),
        ConnectionRefusedError(),
        TimeoutError(),
        redis_errors.ConnectionError(),
        redis_errors.BusyLoadingError(),
        redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
        redis_errors.ReadOnlyError("You can't write against a read only replica."),
        redis_errors.ClusterDownError("The cluster is down"),
        redis_errors.ResponseError("MISCONF Redis is configured to save snapshots"),
        redis_errors.ResponseError("Error running script: @user_script:3: -OOM command not allowed when used memory"),
        sqlalchemy_errors.TimeoutError("QueuePool limit"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.InvalidPasswordError("password authentication failed"),
        asyncpg.DeadlockDetectedError("deadlock"),
        asyncpg.DiskFullError("no space left"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction"),
    ),
    ids=repr,
)
def test_a_server_that_cannot_serve_is_unreachable(error: Exception) -> None:
    assert failure_of(error) == "unreachable"


@pytest.mark.parametrize(
    "error",
    (
        BadData("no msgpack"),
        asyncpg.NumericValueOutOfRangeError("out of range"),
        asyncpg.UniqueViolationError("exists"),
        asyncpg.ProgramLimitExceededError("too long"),
    ),
    ids=repr,
)
def test_only_marked_data_and_three_classes_of_refusal_are_bad_data(error: Exception) -> None:
    assert failure_of(error) == "bad_data"


@pytest.mark.parametrize(
    "error",
    (
        ValueError("of ours"),
        OverflowError(),
        KeyError("field"),
        ValidationError("Expected int"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "no"),
        RecursionError(),
        StateTooLarge(2, 1),
        Conflict("no"),
        redis_errors.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        redis_errors.DataError("Invalid input of type"),
        asyncpg.UndefinedColumnError("no such column"),
        asyncpg.InsufficientPrivilegeError("permission denied"),
        sqlalchemy_errors.ArgumentError("of ours"),
    ),
    ids=repr,
)
def test_everything_else_is_a_bug(error: Exception) -> None:
    """A `ValueError` of ours in the writing path must never count as bad data: the archivist would reject every session."""
    assert failure_of(error) == "bug"


@pytest.mark.parametrize(
    ("statement", "failure"),
    (
        ("SELECT 1 / 0", "bad_data"),
        ("INSERT INTO bots (id, name) VALUES ('a', 'a'), ('a', 'a')", "bad_data"),
        ("SELECT repeat('x', 2000000000) || repeat('x', 2000000000)", "bad_data"),
        ("SELECT no_such_column", "bug"),
        ("SELECT FROM WHERE", "bug"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "unreachable"),
        ("SELECT pg_sleep(5)", "unreachable"),
    ),
)
async def test_postgres_errors_are_classified_through_sqlalchemy(database_url: str, statement: str, failure: Failure) -> None:
    engine = make_engine(database_url, pool_size=1, statement_timeout_s=0.2)
    try:
        with pytest.raises(sqlalchemy_errors.DBAPIError) as caught:
            async with engine.begin() as conn:
                await conn.execute(text(statement))
    finally:
        await engine.dispose()

    assert failure_of(caught.value) == failure
    assert (sqlstate_of(caught.value) == QUERY_CANCELED) == ("sleep" in statement)


async def test_a_missing_postgres_is_unreachable() -> None:
    engine = make_engine("postgresql+asyncpg://u@127.0.0.1:1/none", pool_size=1)
    with pytest.raises(OSError, match=r"refused|Connect") as caught:
        async with engine.connect():
            pass
    await engine.dispose()

    assert failure_of(caught.value) == "unreachable"


async def test_redis_errors_are_classified(redis_url: str) -> None:
    async with Redis.from_url(redis_url, protocol=2) as client:
        await client.set("text", "x")
        with pytest.raises(redis.exceptions.ResponseError) as wrong_type:
            await client.hgetall("text")

    assert failure_of(wrong_type.value) == "bug"


async def test_a_missing_redis_is_unreachable() -> None:
    client = Redis.from_url("redis://127.0.0.1:1")
    pipe = Pipe(client, timeout_s=1)
    with pytest.raises(Unavailable) as through_pipe:
        await pipe.call("PING")
    with pytest.raises(redis_errors.ConnectionError) as direct:
        await client.ping()
    await client.aclose()

    assert {failure_of(through_pipe.value), failure_of(direct.value)} == {"unreachable"}
