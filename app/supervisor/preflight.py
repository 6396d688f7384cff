"""Checks of the servers before anything is started: a URL or a server that cannot be used becomes one line with a hint.

Owns the words for that. It refuses a Redis that takes no writes, and prints no password.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg
from alembic.util.exc import CommandError
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.archive.engine import make_single_use_engine, migrate
from app.delivery.secret_box import SecretBox, encrypt_plain
from app.errors import CannotStart
from app.live.server import open_redis

TIMEOUT_S = 5.0
_ADDRESS = "check host and port, and that the server runs"
_PASSWORD = "correct the user and the password in the URL"  # noqa: S105 - a hint
_TLS = "check whether the server speaks TLS there, and its certificate"

# The first class that fits gives the hint.
_HINTS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (NoPermissionError, "give this user the rights to all commands and keys"),
    (AuthenticationError, _PASSWORD),
    (asyncpg.InvalidAuthorizationSpecificationError, _PASSWORD),
    (asyncpg.InsufficientPrivilegeError, "give this user the rights to create tables in the database"),
    (asyncpg.ReadOnlySQLTransactionError, "give the URL of the primary, or a user who may write"),
    (asyncpg.InvalidCatalogNameError, "create the database, or correct its name in the URL"),
    (asyncpg.TooManyConnectionsError, "raise the limit, or end other connections"),
    (CommandError, "install the newer version of Adjourn that made this schema, or give another database"),
    ((ResponseError, asyncpg.PostgresError), "correct the URL or the server's settings"),
    ((TypeError, ValueError), "correct the URL"),
)


async def check_servers(*, redis_url: str | None = None, database_url: str | None = None) -> None:
    """Raise `CannotStart` with the first URL that does not answer, without its password, the reason and a hint."""
    if redis_url is not None:
        await _check("REDIS_URL", redis_url, _probe_redis(redis_url))
    if database_url is not None:
        await _check("DATABASE_URL", database_url, _probe_postgres(database_url))


def upgrade_schema(database_url: str, box: SecretBox) -> None:
    """Bring the schema to this version, and encrypt the secrets that are not encrypted.

    Raises `CannotStart` if the database refuses or is newer.
    """
    with _naming("DATABASE_URL", database_url):
        migrate(database_url)
        asyncio.run(encrypt_plain(database_url, box))


def without_password(url: str) -> str:
    """The URL with `***` for its password, wherever it stands."""
    parts = urlsplit(url)
    hidden = url
    if "@" in parts.netloc:
        user, _, address = parts.netloc.rpartition("@")
        name, colon, _ = user.partition(":")
        hidden = hidden.replace(parts.netloc, f"{name}{colon}{'***' if colon else ''}@{address}", 1)
    return re.sub(r"([?&](?:password|sslpassword|passfile)=)[^&]*", r"\1***", hidden)


async def _check(setting: str, url: str, probe: Awaitable[None]) -> None:
    with _naming(setting, url):
        async with asyncio.timeout(TIMEOUT_S):
            await probe


@contextmanager
def _naming(setting: str, url: str) -> Iterator[None]:
    """Convert the errors of drivers for this URL to `CannotStart`."""
    try:
        yield
    except TimeoutError:
        hint = f"{_ADDRESS}, and {_TLS}" if url.startswith("rediss:") or "ssl=" in url else _ADDRESS
        reason = f"no answer within {TIMEOUT_S:g} s; {hint}"
    except (OSError, RedisError, SQLAlchemyError, asyncpg.PostgresError, CommandError, TypeError, ValueError) as error:
        reason = _reason(error, secrets=_secrets(url))
    else:
        return
    msg = f"{setting} {without_password(url)} cannot be used: {reason}"
    raise CannotStart(msg)


def _reason(error: BaseException, *, secrets: list[str]) -> str:
    """The innermost cause, which holds the message of the server or of the system, in one line, and a hint."""
    causes = [error]
    while (cause := causes[-1].__cause__ or getattr(causes[-1], "orig", None)) is not None:
        causes.append(cause)
    words = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
    for secret in secrets:
        words = words.replace(secret, "***")
    hint = next((hint for kinds, hint in _HINTS for each in reversed(causes) if isinstance(each, kinds)), _ADDRESS)
    return f"{words.rstrip('.')}; {_TLS if 'SSL' in words else hint}"


def _secrets(url: str) -> list[str]:
    parts = urlsplit(url)
    found = [parts.password or "", *(value for name, value in parse_qsl(parts.query) if "pass" in name)]
    return [each for secret in found if secret for each in {secret, unquote(secret)}]


async def _probe_redis(url: str) -> None:
    # Longer than the time that the check may take, so that it is what ends it.
    async with open_redis(url, timeout_s=2 * TIMEOUT_S) as client:
        await client.execute_command("PING")
        if (await client.info("replication"))["role"] == "slave":
            msg = "it is a replica, which takes no writes: give the URL of its primary"
            raise RedisError(msg)


async def _probe_postgres(url: str) -> None:
    engine = make_single_use_engine(url)
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    finally:
        await engine.dispose()
