"""Makes the engine, through which everything reaches Postgres: pool, timeouts, JSON by msgspec.

No statement may wait for ever: the server cuts it after `statement_timeout_s`, and asyncpg gives up a little later where the
server itself is silent. A connection is tried before it is used, so a restart of Postgres costs no request.
"""

from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from app.settings import normalised_database_url

CONNECT_TIMEOUT_S = 5.0


def make_engine(database_url: str, *, pool_size: int = 10, statement_timeout_s: float = 15, name: str = "adjourn") -> AsyncEngine:
    """The engine of one process; `dispose` it at the end."""
    return create_async_engine(
        normalised_database_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        pool_pre_ping=True,
        connect_args=_connect_args(statement_timeout_s=statement_timeout_s, name=name),
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
        # The parameters of a statement may be a user's private text, which must not be logged.
        hide_parameters=True,
    )


def make_single_use_engine(database_url: str, *, statement_timeout_s: float = 600, name: str = "adjourn-migrate") -> AsyncEngine:
    """An engine without a pool, for a job that opens one connection and ends."""
    return create_async_engine(
        normalised_database_url(database_url),
        poolclass=NullPool,
        connect_args=_connect_args(statement_timeout_s=statement_timeout_s, name=name),
    )


def _connect_args(*, statement_timeout_s: float, name: str) -> dict[str, Any]:
    return {
        "timeout": CONNECT_TIMEOUT_S,
        "command_timeout": statement_timeout_s + 5,
        "server_settings": {
            "application_name": name,
            "statement_timeout": str(int(statement_timeout_s * 1000)),
            "idle_in_transaction_session_timeout": str(int(statement_timeout_s * 2000)),
            "timezone": "UTC",
            "jit": "off",  # compiling a query that touches a few rows costs more than running it
        },
    }


def _to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
