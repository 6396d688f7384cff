"""Reads closed sessions: one, a page of a list, one's messages. Newest first; by keyset, never by OFFSET.

A session's id carries its `opened_at`, so a look-up goes to one partition, and a page of a list touches only the months it shows.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import ColumnElement, Row, Select, Text, cast, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.rows import message_of
from app.archive.tables import instant, messages, sessions
from app.domain.instants import DAY_MS, HOUR_MS
from app.domain.policy.model import LONGEST_SESSION_HOURS
from app.domain.records import Message, Session
from app.domain.strand import Strand, opened_at_ms_of

# The longest that a policy lets a session be open (`max_duration_hours`), and a day to spare.
LONGEST_SESSION_MS = LONGEST_SESSION_HOURS * HOUR_MS + DAY_MS

_decode_session = msgspec.json.Decoder(Session).decode
# As text: the driver's own decoding would make lists of it, only for them to be read again.
_DETAIL = cast(sessions.c.detail, Text).label("detail")
SESSION_FIELDS = (sessions.c.bot_id, sessions.c.conversation_id, sessions.c.thread, sessions.c.continuation_of, _DETAIL)


class ArchivedSession(Struct, frozen=True):
    """A closed session as it stands in Postgres."""

    strand: Strand
    session: Session
    continuation_of: str | None


class SessionPlace(Struct, frozen=True):
    """Where a page of a list ended: the last session on it."""

    opened_at_ms: int
    id: str


class SessionFilter(Struct, frozen=True, kw_only=True):
    """Which sessions are wanted; None: all. `bots` are those that the asker may see."""

    bots: frozenset[str] | None = None
    user: str | None = None
    channel: str | None = None
    conversation: str | None = None
    reason: str | None = None
    interactive: bool | None = None
    developer: bool | None = None
    opened_from_ms: int | None = None
    opened_to_ms: int | None = None
    closed_from_ms: int | None = None
    closed_to_ms: int | None = None


async def find(conn: AsyncConnection, session_id: str) -> ArchivedSession | None:
    """The session of this id. The id must be a UUID."""
    opened_at = instant(opened_at_ms_of(session_id))
    wanted = select(*SESSION_FIELDS).where(sessions.c.opened_at == opened_at, sessions.c.id == session_id)
    row = (await conn.execute(wanted)).one_or_none()
    return None if row is None else session_of(row)


async def page(conn: AsyncConnection, wanted: SessionFilter, *, after: SessionPlace | None, limit: int) -> list[ArchivedSession]:
    """Sessions in the order of their opening, the latest first; those after `after`. From is included, to is not."""
    listed = (
        select(*SESSION_FIELDS)
        .where(*conditions(wanted))
        .order_by(sessions.c.opened_at.desc(), sessions.c.id.desc())
        .limit(limit)
    )
    return [session_of(row) for row in await conn.execute(_after(listed, after))]


async def oldest_first(
    conn: AsyncConnection, wanted: SessionFilter, *, after: SessionPlace | None, limit: int
) -> list[ArchivedSession]:
    """Sessions in the order of their opening, the first opened first; those after `after`."""
    listed = select(*SESSION_FIELDS).where(*conditions(wanted)).order_by(sessions.c.opened_at, sessions.c.id).limit(limit)
    if after is not None:
        at = instant(after.opened_at_ms)
        listed = listed.where(sessions.c.opened_at >= at, tuple_(sessions.c.opened_at, sessions.c.id) > (at, after.id))
    return [session_of(row) for row in await conn.execute(listed)]


async def messages_of(conn: AsyncConnection, session_id: str, *, after: int, limit: int) -> list[Message]:
    """A session's messages in order, those whose sequence is above `after`."""
    opened_at = instant(opened_at_ms_of(session_id))
    wanted = (
        select(messages)
        .where(messages.c.session_id == session_id, messages.c.opened_at == opened_at, messages.c.sequence > after)
        .order_by(messages.c.sequence)
        .limit(limit)
    )
    return [message_of(row) for row in await conn.execute(wanted)]


async def messages_of_all(conn: AsyncConnection, of: Sequence[Session]) -> dict[str, list[Message]]:
    """All messages of these sessions, each session's in order."""
    opened = {instant(session.opened_at_ms) for session in of}
    ids = [session.id for session in of]
    wanted = (
        select(messages).where(messages.c.session_id.in_(ids), messages.c.opened_at.in_(opened)).order_by(messages.c.sequence)
    )
    found: dict[str, list[Message]] = {session: [] for session in ids}
    for row in await conn.execute(wanted):
        found[row.session_id].append(message_of(row))
    return found


async def messages_by_id(conn: AsyncConnection, session_id: str, ids: Sequence[str]) -> list[Message]:
    """The messages of a session that have these ids."""
    opened_at = instant(opened_at_ms_of(session_id))
    wanted = select(messages).where(
        messages.c.session_id == session_id, messages.c.opened_at == opened_at, messages.c.message_id.in_(ids)
    )
    return [message_of(row) for row in await conn.execute(wanted)]


def _after(listed: Select[Any], place: SessionPlace | None) -> Select[Any]:
    if place is None:
        return listed
    at = instant(place.opened_at_ms)
    # The first condition says nothing new, but by it Postgres knows which months to leave out.
    return listed.where(sessions.c.opened_at <= at, tuple_(sessions.c.opened_at, sessions.c.id) < (at, place.id))


def conditions(wanted: SessionFilter) -> list[ColumnElement[bool]]:
    """The conditions of a filter, in SQL."""
    return [
        *_bots(wanted.bots),
        *(
            column == value
            for column, value in (
                (sessions.c.user_id, wanted.user),
                (sessions.c.channel, wanted.channel),
                (sessions.c.conversation_id, wanted.conversation),
                (sessions.c.reason, wanted.reason),
                (sessions.c.interactive, wanted.interactive),
                (sessions.c.developer, wanted.developer),
            )
            if value is not None
        ),
        *_times(wanted),
    ]


def _bots(bots: frozenset[str] | None) -> list[ColumnElement[bool]]:
    """One bot by equality, since only then its index gives the order of the list."""
    if bots is None:
        return []
    names = sorted(bots)
    return [sessions.c.bot_id == names[0]] if len(names) == 1 else [sessions.c.bot_id.in_(names)]


def _times(wanted: SessionFilter) -> list[ColumnElement[bool]]:
    opened_from_ms, opened_to_ms = wanted.opened_from_ms, wanted.opened_to_ms
    if wanted.closed_from_ms is not None:
        # No session is open for longer, and the bound on `opened_at` says which months to look into.
        opened_from_ms = max(opened_from_ms or 0, wanted.closed_from_ms - LONGEST_SESSION_MS)
    bounds = [
        (sessions.c.opened_at.__ge__, opened_from_ms),
        (sessions.c.opened_at.__lt__, opened_to_ms),
        (sessions.c.closed_at.__ge__, wanted.closed_from_ms),
        (sessions.c.closed_at.__lt__, wanted.closed_to_ms),
    ]
    if wanted.closed_to_ms is not None:
        bounds.append((sessions.c.opened_at.__lt__, wanted.closed_to_ms))
    return [compare(instant(at_ms)) for compare, at_ms in bounds if at_ms is not None]


def session_of(row: Row[Any]) -> ArchivedSession:
    """The session of a row of `SESSION_FIELDS`."""
    strand = Strand(row.bot_id, row.conversation_id, row.thread)
    return ArchivedSession(strand, _decode_session(row.detail), row.continuation_of)
