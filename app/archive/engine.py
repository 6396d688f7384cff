"""Makes the engine, through which everything reaches Postgres (pool, timeouts, JSON by msgspec), and keeps the schema up to date.

No statement may wait for ever: the server cuts it after `statement_timeout_s`, and asyncpg gives up a little later where the
server itself is silent. A connection is tried before it is used, so a restart of Postgres costs no request.

All pending migrations run in one transaction under an advisory lock: processes that start at once wait for the first, then
find nothing to do, and a crash half-way leaves the schema as it was.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum, unique
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

import msgspec
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from typing_extensions import override

from app.errors import CannotStart
from app.settings import normalised_database_url
from app.shares import OWNER, Shares

CONNECT_TIMEOUT_S = 5.0
_DRIVER = "postgresql+asyncpg://"
# Parameters of libpq that say how it keeps a connection; asyncpg would send them to the server, which refuses to start.
_OF_LIBPQ = frozenset({
    *("channel_binding", "client_encoding", "connect_timeout", "fallback_application_name", "gssencmode", "keepalives"),
    *("keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "sslcompression", "sslsni"),
    "tcp_user_timeout",
})  # fmt: skip
_OF_ASYNCPG = frozenset({
    *("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "options", "passfile", "password", "port"),
    *("service", "servicefile", "ssl_max_protocol_version", "ssl_min_protocol_version", "sslcert", "sslcrl", "sslkey"),
    *("sslmode", "sslpassword", "sslrootcert", "target_session_attrs", "user"),
})  # fmt: skip


@unique
class Lock(IntEnum):
    """Every advisory lock that a transaction takes, so that no two purposes share one by accident."""

    MIGRATION = 0x61646A_01
    PARTITION = 0x61646A_02
    CONFIG = 0x61646A_03  # the triggers that stamp revisions take it, too (migration 0002)
    ERASURE = 0x61646A_05  # the archivist holds it shared while it writes
    ROLL_UP = 0x61646A_06
    RETENTION = 0x61646A_07


async def take_lock(conn: AsyncConnection, lock: Lock, *, shared: bool = False) -> None:
    """Wait for an advisory lock; it is this transaction's until that ends. Shared, it excludes those alone who take it whole."""
    wait = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
    await conn.execute(select(wait(int(lock))))


async def try_lock(conn: AsyncConnection, lock: Lock) -> bool:
    """Take an advisory lock for this transaction, if no other one has it."""
    return bool(await conn.scalar(select(func.pg_try_advisory_xact_lock(int(lock)))))


def make_engine(
    database_url: str, *, pool_size: int = 10, statement_timeout_s: float = 15, name: str = "adjourn", read_only: bool = False
) -> AsyncEngine:
    """The engine of one process; `dispose` it at the end."""
    return create_async_engine(
        _DRIVER,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args=connect_args(database_url, statement_timeout_s=statement_timeout_s, name=name, read_only=read_only),
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
        # The parameters of a statement may be a user's private text, which must not be logged.
        hide_parameters=True,
    )


class SharedEngine(AsyncEngine):
    """An engine whose connections the owners of requests share (`app.shares`); tasks without an owner wait for the pool alone."""

    def __init__(self, engine: AsyncEngine, *, pool_size: int) -> None:
        super().__init__(engine.sync_engine)
        self._shares = Shares(pool_size, most_of_one=max(1, pool_size - 1))

    @override
    def connect(self) -> AsyncConnection:
        owner = OWNER.get()
        return AsyncConnection(self) if owner is None else _SharedConnection(self, self._shares, owner)


class _SharedConnection(AsyncConnection):
    """A connection of one owner's share, from its start to its close."""

    __slots__ = ("_holds", "_owner", "_shares")

    def __init__(self, engine: AsyncEngine, shares: Shares, owner: str) -> None:
        super().__init__(engine)
        self._shares = shares
        self._owner = owner
        self._holds = False

    @override
    async def start(self, is_ctxmanager: bool = False) -> AsyncConnection:
        await self._shares.take(self._owner, wait_s=CONNECT_TIMEOUT_S)
        self._holds = True
        try:
            return await super().start(is_ctxmanager)
        except BaseException:
            self._give_back()
            raise

    @override
    async def close(self) -> None:
        try:
            await super().close()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        if self._holds:
            self._holds = False
            self._shares.give_back(self._owner)


def make_single_use_engine(database_url: str, *, statement_timeout_s: float = 600, name: str = "adjourn-migrate") -> AsyncEngine:
    """An engine without a pool, for a job that opens one connection and ends."""
    return create_async_engine(
        _DRIVER,
        poolclass=NullPool,
        connect_args=connect_args(database_url, statement_timeout_s=statement_timeout_s, name=name),
    )


def connect_args(database_url: str, *, statement_timeout_s: float, name: str, read_only: bool = False) -> dict[str, Any]:
    """The arguments of asyncpg for a URL, whose other parameters asyncpg reads itself, as libpq does.

    With the parameter `pgbouncer=true`, connections are pooled by transaction: a statement may meet another connection of the
    server than the one before, so none is prepared under a lasting name, and the server's own settings are left to the role.
    """
    parts = urlsplit(normalised_database_url(database_url))
    given = dict(parse_qsl(parts.query))
    pooled = given.pop("pgbouncer", "false").lower() in {"true", "1"}
    if "ssl" in given:
        given["sslmode"] = given.pop("ssl")
    if unknown := given.keys() - _OF_LIBPQ - _OF_ASYNCPG:  # the server would get it, and say so after the password only
        msg = f"DATABASE_URL or DATABASE_READ_URL cannot be used: Postgres has no parameter {min(unknown)}; correct the URL"
        raise CannotStart(msg)
    if "," in parts.netloc:  # after a failover the other host is the one that takes writes
        given.setdefault("target_session_attrs", "prefer-standby" if read_only else "read-write")
    parameters = urlencode({each: value for each, value in given.items() if each not in _OF_LIBPQ}, safe="/")
    arguments: dict[str, Any] = {
        "dsn": f"postgresql://{parts.netloc}{parts.path}" + (f"?{parameters}" if parameters else ""),
        "timeout": float(given.get("connect_timeout", CONNECT_TIMEOUT_S)),
        "command_timeout": statement_timeout_s + 5,
        "server_settings": {"application_name": name, "timezone": "UTC"},
    }
    if pooled:
        return arguments | {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"adjourn_{uuid4().hex}",
        }
    arguments["server_settings"] |= {
        "statement_timeout": str(int(statement_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": str(int(statement_timeout_s * 2000)),
        "jit": "off",  # compiling a query that touches a few rows costs more than running it
    } | ({"default_transaction_read_only": "on"} if read_only else {})
    return arguments


def _to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()


# Beside `app/` in a checkout and in an installation alike.
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def migrate(database_url: str) -> None:
    """Bring the schema to its newest version; blocks, and may be called where an event loop runs.

    Raises what SQLAlchemy raises if the server cannot be reached or a migration fails.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, migrate_async(database_url)).result()


async def migrate_async(database_url: str) -> None:
    """`migrate` within an event loop."""
    engine = make_single_use_engine(database_url)
    try:
        async with engine.begin() as conn:
            await take_lock(conn, Lock.MIGRATION)
            await conn.run_sync(_upgrade)
    finally:
        await engine.dispose()


async def schema_is_current(conn: AsyncConnection) -> bool:
    """Whether the schema is exactly the one that this code was written for."""
    return await conn.run_sync(_current_version) == newest_schema_version()


@cache
def newest_schema_version() -> str | None:
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def alembic_config() -> Config:
    """Alembic's configuration, without a file."""
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    made.set_main_option("path_separator", "os")
    return made


def _upgrade(conn: Connection) -> None:
    made = alembic_config()
    made.attributes["connection"] = conn
    command.upgrade(made, "head")


def _current_version(conn: Connection) -> str | None:
    return MigrationContext.configure(conn).get_current_revision()
