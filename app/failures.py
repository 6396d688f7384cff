"""The one classifier of exceptions: is a server unreachable, is the data bad, or is the program wrong?

    unreachable   Redis or Postgres does not answer, or answers that it cannot work now (full, starting, read-only, a timeout).
                  Nothing is known of the data: try the same again later.
    bad_data      The data can never be stored: it was marked `BadData` when it was read, or Postgres refused it with an
                  SQLSTATE of class 22 (data), 23 (constraint) or 54 (limit). Trying again ends the same way.
    bug           Everything else. The program is wrong; a `ValueError` of its own code belongs here. Log it with its traceback,
                  keep the data, and try again: a later version may handle it.

The archivist may reject only `bad_data`; jobs log `unreachable` as one warning and `bug` with a traceback; routes answer 503
for the former and 500 for the latter. It refuses to know what any caller does about a failure.
"""

from typing import Literal

import asyncpg
from redis import exceptions as redis_errors
from sqlalchemy import exc as sqlalchemy_errors

from app.errors import Unavailable

Failure = Literal["unreachable", "bad_data", "bug"]

DATA = "22"
CONSTRAINT = "23"
LIMIT = "54"
QUERY_CANCELED = "57014"
"""SQLSTATE of a statement that took longer than `statement_timeout`."""

_BAD_DATA_STATES = (DATA, CONSTRAINT, LIMIT)
# 08 connection, 28 authorization, 3D and 57 database is missing, starting or stopping, 40 rollback, 53 resources, 55 locks,
# 58 disk; 0A000: a migration changed a table under a prepared statement; 25006: a standby, which takes no writes.
_UNREACHABLE_STATES = ("08", "0A000", "25006", "28", "3D", "40", "53", "55", "57", "58", "XX")
# Replies of a Redis that is reachable and cannot serve: each is the first word of the error, or follows "-" in a script's error.
_UNREACHABLE_REPLIES = ("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN")
_UNREACHABLE = (
    Unavailable,
    OSError,  # a builtin TimeoutError is one, too
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.ClusterError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.TryAgainError,
    sqlalchemy_errors.TimeoutError,
    asyncpg.InterfaceError,  # "connection is closed", for one; it has no SQLSTATE
)


class BadData(Exception):
    """Stored data that cannot be read, marked where it was read. Its text says what is wrong with it."""


def failure_of(error: BaseException) -> Failure:
    """The cause of an exception: a bug, unless there is evidence of another one."""
    if isinstance(error, BadData):
        return "bad_data"
    state = sqlstate_of(error)
    if state is not None and state.startswith(_BAD_DATA_STATES):
        return "bad_data"
    return "unreachable" if _is_unreachable(error, state) else "bug"


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error that Postgres sent, through SQLAlchemy or from asyncpg itself; None for any other error."""
    sent = error.orig if isinstance(error, sqlalchemy_errors.DBAPIError) else error
    if isinstance(error, sqlalchemy_errors.DBAPIError | asyncpg.PostgresError):
        state = getattr(sent, "sqlstate", None)
        return state if isinstance(state, str) else None
    return None


def _is_unreachable(error: BaseException, state: str | None) -> bool:
    if state is not None:
        return state.startswith(_UNREACHABLE_STATES)
    if isinstance(error, redis_errors.ResponseError) and _is_unable(str(error)):
        return True
    if isinstance(error, sqlalchemy_errors.DBAPIError):
        return error.connection_invalidated or _is_unreachable_cause(error)
    return isinstance(error, _UNREACHABLE)


def _is_unable(reply: str) -> bool:
    """Whether Redis says that it cannot serve. Redis 6.2 wraps such an error in that of the script which met it."""
    return any(reply.startswith(word) or f"-{word} " in reply for word in _UNREACHABLE_REPLIES)


def _is_unreachable_cause(error: sqlalchemy_errors.DBAPIError) -> bool:
    """SQLAlchemy wraps an error of asyncpg that has no SQLSTATE: the wrapped one says what happened."""
    cause = getattr(error.orig, "__cause__", None)
    return cause is not None and isinstance(cause, _UNREACHABLE)
