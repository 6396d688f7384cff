"""Writes closed sessions with their messages, many at a time, and never one twice.

The sessions of a batch go by COPY into a staging table of the connection's own and from there to those that are not there yet;
then the messages of the new ones go by COPY to their place, in portions: no statement grows with the length of a session, since
each must end before its time is up. A session that is there already is left as it is, and its messages with it. Characters that
Postgres cannot hold (NUL) become U+FFFD here, so that nothing a user typed can stop the archive.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.instants import instant, instant_or_none
from app.archive.partitions import ensure_months, month_of
from app.archive.tables import messages, sessions
from app.domain.records import Message, Session
from app.domain.strand import Strand

NUL = "\x00"
REPLACEMENT = "\ufffd"
_ESCAPED_NUL = "\\u0000"


class ClosedSession(Struct, frozen=True):
    """A session that is over, as the archive takes it. `continuation_of`: the archived session that its messages missed."""

    strand: Strand
    session: Session
    messages: Sequence[Message]
    continuation_of: str | None = None


_SESSION_COLUMNS = [column.name for column in sessions.c if column.name != "archived_at"]
_MESSAGE_COLUMNS = [column.name for column in messages.c]

_A_PORTION = 10_000  # messages

# DELETE ROWS: a connection keeps its staging table, empty, from one batch to the next.
_STAGING = text("CREATE TEMP TABLE IF NOT EXISTS staged_sessions (LIKE sessions INCLUDING DEFAULTS) ON COMMIT DELETE ROWS")
_MERGE = text("INSERT INTO sessions SELECT * FROM staged_sessions ON CONFLICT DO NOTHING RETURNING id")
# A continuation's messages count as held by the session that it continues: after a second rollback they are offered once more.
# It has the same user and is younger, so that it is found by the index.
_MESSAGE_IDS = text("""
    WITH held AS (
        SELECT id AS session_id, id, opened_at FROM sessions WHERE id = ANY(:ids) AND opened_at = ANY(:opened)
        UNION ALL
        SELECT continuation_of, id, opened_at FROM sessions
        WHERE continuation_of = ANY(:ids) AND user_id = ANY(:users) AND opened_at >= :since
    )
    SELECT held.session_id, array_agg(m.message_id) FROM held
    JOIN messages m ON m.session_id = held.id AND m.opened_at = held.opened_at GROUP BY held.session_id
""")


async def insert_closed(conn: AsyncConnection, batch: Sequence[ClosedSession]) -> set[str]:
    """Write a batch within the caller's transaction; returns the ids of the sessions that were not there before."""
    if not batch:
        return set()
    await ensure_months(conn, {month_of(closed.session.opened_at_ms) for closed in batch})
    await conn.execute(_STAGING)
    await _copy(conn, "staged_sessions", _SESSION_COLUMNS, map(_session_row, batch))
    inserted = {str(session) for session in await conn.scalars(_MERGE)}
    new = {closed.session.id: closed for closed in batch if closed.session.id in inserted}  # a batch may hold one twice
    rows = _message_rows(new.values())
    while portion := list(islice(rows, _A_PORTION)):
        await _copy(conn, "messages", _MESSAGE_COLUMNS, portion)
    return inserted


async def add_messages(conn: AsyncConnection, session: Session, portion: Sequence[Message]) -> None:
    """Add messages to a session that was inserted without them in this transaction."""
    await _copy(conn, "messages", _MESSAGE_COLUMNS, _rows_of(session, portion))


async def existing_message_ids(conn: AsyncConnection, batch: Collection[Session]) -> dict[str, set[str]]:
    """Of each of these sessions that the archive holds, the ids of the messages it holds, in its continuations too."""
    opened = [instant(session.opened_at_ms) for session in batch]
    users = list({session.user_id for session in batch})
    values = {"ids": [session.id for session in batch], "opened": opened, "users": users, "since": min(opened, default=None)}
    found = await conn.execute(_MESSAGE_IDS, values)
    return {str(session): set(ids) for session, ids in found}


async def _copy(conn: AsyncConnection, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    raw = await conn.get_raw_connection()
    driver = raw.driver_connection
    if driver is None:
        msg = "the connection was closed"
        raise ConnectionError(msg)
    await driver.copy_records_to_table(table, records=rows, columns=columns)


def _session_row(closed: ClosedSession) -> tuple[Any, ...]:
    """In the order of `_SESSION_COLUMNS`."""
    strand, session = closed.strand, closed.session
    return (
        instant(session.opened_at_ms),
        session.id,
        strand.bot,
        strand.conversation,
        strand.thread,
        session.user_id,
        session.channel,
        instant(session.closed_at_ms or 0),
        session.reason,
        session.opening_rule,
        session.closing_rule or "",
        session.policy_version,
        session.interactive,
        session.developer,
        session.counted,
        session.contained,
        session.outcome,
        session.trade,
        session.language,
        _clean(session.intent),
        [_clean(tag) for tag in session.tags],
        session.entries,
        session.user_entries,
        session.bot_entries,
        session.agent_entries,
        session.system_entries,
        session.interactions,
        session.billing_sessions,
        session.first_response_ms,
        closed.continuation_of,
        _json(session),
    )


def _message_rows(batch: Iterable[ClosedSession]) -> Iterator[tuple[Any, ...]]:
    """In the order of `_MESSAGE_COLUMNS`."""
    for closed in batch:
        yield from _rows_of(closed.session, closed.messages)


def _rows_of(session: Session, messages: Iterable[Message]) -> Iterator[tuple[Any, ...]]:
    opened_at = instant(session.opened_at_ms)
    for message in messages:
        yield (
            session.id,
            message.sequence,
            opened_at,
            message.message_id,
            instant(message.received_at_ms),
            message.user_id,
            message.role,
            message.type,
            _clean(message.text),
            _clean(message.intent),
            message.language,
            [_clean(tag) for tag in message.tags],
            instant_or_none(message.sent_at_ms),
            None if message.rest is None else _json(message.rest),
        )


def _clean(value: str | None) -> str | None:
    return value.replace(NUL, REPLACEMENT) if value is not None and NUL in value else value


_encode = msgspec.json.Encoder().encode


def _json(value: object) -> str:
    encoded = _encode(value).decode()
    # The escape may be a text's own (`\\u0000` after a backslash): only then it costs a look at every value.
    return encoded if _ESCAPED_NUL not in encoded else _encode(_without_nul(msgspec.to_builtins(value))).decode()


def _without_nul(value: object) -> object:
    if isinstance(value, str):
        return value.replace(NUL, REPLACEMENT)
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value
