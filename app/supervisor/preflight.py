"""Checks that the servers answer before anything is started, so that a wrong URL is one clear line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.archive.engine import make_single_use_engine
from app.errors import CannotStart

TIMEOUT_S = 5.0


async def check_servers(*, redis_url: str | None = None, database_url: str | None = None) -> None:
    """Raise `CannotStart` with the first URL that does not answer, without its password, and the reason."""
    if redis_url is not None:
        await _check("REDIS_URL", redis_url, _ping(redis_url))
    if database_url is not None:
        await _check("DATABASE_URL", database_url, _select(database_url))


async def _check(setting: str, url: str, probe: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await probe
    except TimeoutError:
        reason = f"no answer within {TIMEOUT_S:g} s"
    except (OSError, RedisError, SQLAlchemyError, asyncpg.PostgresError) as error:
        reason = _in_a_line(error)
    else:
        return
    msg = f"{setting} {without_password(url)} cannot be used: {reason}"
    raise CannotStart(msg)


async def _ping(url: str) -> None:
    async with Redis.from_url(url, socket_connect_timeout=TIMEOUT_S) as client:
        await client.execute_command("PING")


async def _select(url: str) -> None:
    engine = make_single_use_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    finally:
        await engine.dispose()


def without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, address = parts.netloc.rpartition("@")
    return url.replace(parts.netloc, f"{user.partition(':')[0]}:***@{address}", 1)


def _in_a_line(error: BaseException) -> str:
    """The innermost cause in one line: the message of the server or of the system."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
