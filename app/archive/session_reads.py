"""Reads closed sessions: one, a page of a list, one's messages. Lists go on by keyset, never by OFFSET.

A session's id carries its `opened_at`, so a look-up goes to one partition, and a page of a list touches only the months it shows.
Only a look-up by message id asks all partitions, each by its index.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from sys import maxsize
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from sqlalchemy import ColumnElement, Row, Select, Text, cast, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.sessions import message_of
from app.archive.tables import bots, instant, messages, sessions
from app.domain.entry import ID_PATTERN, Id, Slug
from app.domain.instants import DAY_MS, HOUR_MS
from app.domain.policy.model import LONGEST_SESSION_HOURS
from app.domain.records import Message, Outcome, Reason, Session, Trade
from app.domain.session_view import message_size
from app.domain.strand import LONGEST_CONVERSATION, Strand, opened_at_ms_of

# The longest that a policy lets a session be open (`max_duration_hours`), and a day to spare.
LONGEST_SESSION_MS = LONGEST_SESSION_HOURS * HOUR_MS + DAY_MS

_ROWS_AT_ONCE = 16
Item = TypeVar("Item")
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
    """Where a page of a list ended: the instant that it is ordered by, of the last session on it, and that session's id."""

    at_ms: int
    id: str


SessionOrder = Literal["opened_at", "-opened_at", "closed_at", "-closed_at"]
"""The order of a list: by opening or by close, the earliest first, or with `-` the latest."""

LONGEST_MS = 2**53
LONGEST_SEARCH = 256
_Conversation = Annotated[str, Meta(min_length=1, max_length=LONGEST_CONVERSATION, pattern=ID_PATTERN)]


class SessionFilter(Struct, frozen=True, kw_only=True):
    """Which sessions; None: all. An instant or a duration `…_from` is included, one `…_to` is not.

    A field that is named as a column is the value of that column, or a set of values of which it is one. A field with a
    description is a query parameter of each list: an instant `x_ms` as `x`, a set as a repeated parameter.
    """

    bots: frozenset[str] | None = None  # that the caller may see
    user_id: Annotated[Id | None, Meta(description="Only of this user.", examples=["ann"])] = None
    channel: Annotated[
        Slug | frozenset[Slug] | None, Meta(description="Only on this channel; repeated: any of them.", examples=[["web"]])
    ] = None
    conversation_id: Annotated[_Conversation | None, Meta(description="Only of this conversation.", examples=["web:ann"])] = None
    reason: Annotated[
        Reason | frozenset[Reason] | None,
        Meta(description="Only those closed for this reason; repeated: any of them.", examples=[["inactivity"]]),
    ] = None
    outcome: Annotated[
        Outcome | frozenset[Outcome] | None,
        Meta(description="Only those with this outcome; repeated: any of them.", examples=[["completed"]]),
    ] = None
    trade: Annotated[Trade | None, Meta(description="Only those of this trade.")] = None
    language: Annotated[Id | None, Meta(description="Only those whose last language is this.", examples=["en"])] = None
    intent: Annotated[Id | None, Meta(description="Only those whose last intent is this.", examples=["order.status"])] = None
    tag: Annotated[Id | None, Meta(description="Only those with this tag in the last set.", examples=["vip"])] = None
    policy_version: Annotated[
        int | None, Meta(ge=0, le=2**31 - 1, description="Only those closed under this version of the policy.", examples=[2])
    ] = None
    interactive: Annotated[bool | None, Meta(description="Only those in which the user took part, or did not.")] = None
    developer: Annotated[bool | None, Meta(description="Only those in which a developer took part, or did not.")] = None
    counted: Annotated[bool | None, Meta(description="Only those that count in statistics, or do not.")] = None
    contained: Annotated[bool | None, Meta(description="Only those that went without a human, or did not.")] = None
    sandbox: Annotated[bool | None, Meta(description="Only those of sandbox bots, or of others.")] = None
    text: Annotated[
        str | None,
        Meta(
            min_length=1,
            max_length=LONGEST_SEARCH,
            description="Only those with a message that has all these words, in any form that the session's language gives them; "
            'words in `"…"` in this order, `or`: either side, `-word`: not this one. A session is found once it is archived.',
            examples=["refund order"],
        ),
    ] = None
    metadata: Mapping[str, str] | None = None  # key of `session_metadata` to its value; a number, true or false as JSON writes it
    opened_from_ms: Annotated[int | None, Meta(description="Only those opened at or after this instant.")] = None
    opened_to_ms: Annotated[int | None, Meta(description="Only those opened before this instant.")] = None
    closed_from_ms: Annotated[int | None, Meta(description="Only those closed at or after this instant.")] = None
    closed_to_ms: Annotated[int | None, Meta(description="Only those closed before this instant.")] = None
    active_ms_from: Annotated[
        int | None, Meta(ge=0, le=LONGEST_MS, description="Only those active for at least this long, in ms.", examples=[60000])
    ] = None
    active_ms_to: Annotated[
        int | None, Meta(ge=0, le=LONGEST_MS, description="Only those active for less than this, in ms.", examples=[600000])
    ] = None

    @property
    def given(self) -> set[str]:
        """The fields that leave sessions out."""
        return {name for name in self.__struct_fields__ if getattr(self, name) is not None}


EQUAL = {name: sessions.c[name] for name in SessionFilter.__struct_fields__ if name in sessions.c}
"""Fields of the filter that a column equals, or is one of."""

_sandboxes = select(bots.c.id).where(bots.c.sandbox)


async def find(conn: AsyncConnection, session_id: str, *, within: frozenset[str] | None = None) -> ArchivedSession | None:
    """The session of this id, if it is of one of these bots (None: of any). The id must be a UUID."""
    opened_at = instant(opened_at_ms_of(session_id))
    wanted = select(*SESSION_FIELDS).where(sessions.c.opened_at == opened_at, sessions.c.id == session_id)
    if within is not None:
        wanted = wanted.where(sessions.c.bot_id.in_(sorted(within)))
    row = (await conn.execute(wanted)).one_or_none()
    return None if row is None else session_of(row)


async def page(
    conn: AsyncConnection, wanted: SessionFilter, *, order: SessionOrder = "-opened_at", after: SessionPlace | None, limit: int
) -> list[ArchivedSession]:
    """Sessions in this order, those after `after`."""
    column, descending = sessions.c[order.removeprefix("-")], order.startswith("-")
    by = (column.desc(), sessions.c.id.desc()) if descending else (column, sessions.c.id)
    listed = select(*SESSION_FIELDS).where(*conditions(wanted), *_after(column, after, descending=descending)).order_by(*by)
    return [session_of(row) for row in await conn.execute(listed.limit(limit))]


def place_of(last: Session, order: SessionOrder) -> SessionPlace:
    """The place of a closed session in a list of this order."""
    opened = order.removeprefix("-") == "opened_at"
    return SessionPlace(last.opened_at_ms if opened else last.closed_at_ms or 0, last.id)


async def find_by_message(conn: AsyncConnection, bot: str, message_id: str) -> ArchivedSession | None:
    """The session of a bot that holds the message of this id; of several the one that opened last."""
    held = (sessions.c.id == messages.c.session_id) & (sessions.c.opened_at == messages.c.opened_at)
    wanted = (
        select(*SESSION_FIELDS)
        .join(messages, held)
        .where(messages.c.message_id == message_id, sessions.c.bot_id == bot)
        .order_by(sessions.c.opened_at.desc(), sessions.c.id.desc())
        .limit(1)
    )
    row = (await conn.execute(wanted)).one_or_none()
    return None if row is None else session_of(row)


async def messages_of(
    conn: AsyncConnection, session_id: str, *, after: int, limit: int, most_bytes: int = maxsize
) -> list[Message]:
    """A session's messages in order, those whose sequence is above `after`, up to the one that passes `most_bytes`."""
    opened_at = instant(opened_at_ms_of(session_id))
    wanted = (
        select(messages)
        .where(messages.c.session_id == session_id, messages.c.opened_at == opened_at, messages.c.sequence > after)
        .order_by(messages.c.sequence)
        .limit(limit)
    )
    return await rows_within(conn, wanted, message_of, size=message_size, most_bytes=most_bytes)


async def rows_within(
    conn: AsyncConnection, wanted: Select[Any], made: Callable[[Row[Any]], Item], *, size: Callable[[Item], int], most_bytes: int
) -> list[Item]:
    """Build items from the rows of a query, up to the one that passes `most_bytes`, and two at least.

    They come from a cursor, since each may be as large as a body.
    """
    found: list[Item] = []
    total = 0
    async with conn.stream(wanted.execution_options(max_row_buffer=_ROWS_AT_ONCE)) as rows:
        async for row in rows:
            found.append(made(row))
            total += size(found[-1])
            if len(found) > 1 and total > most_bytes:
                break
    return found


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


def _after(column: ColumnElement[datetime], place: SessionPlace | None, *, descending: bool) -> list[ColumnElement[bool]]:
    if place is None:
        return []
    at, key = instant(place.at_ms), tuple_(column, sessions.c.id)
    # The bound on `opened_at` follows from the other, but by it Postgres knows which months to leave out.
    if descending:
        return [sessions.c.opened_at <= at, key < (at, place.id)]
    earliest_ms = place.at_ms if column is sessions.c.opened_at else place.at_ms - LONGEST_SESSION_MS
    return [sessions.c.opened_at >= instant(earliest_ms), key > (at, place.id)]


def conditions(wanted: SessionFilter) -> list[ColumnElement[bool]]:
    """The conditions of a filter, in SQL."""
    return [
        *_bots(wanted.bots),
        *(_is(column, value) for name, column in EQUAL.items() if (value := getattr(wanted, name)) is not None),
        *([] if wanted.tag is None else [sessions.c.tags.contains([wanted.tag])]),
        *([] if wanted.sandbox is None else [sessions.c.bot_id.in_(_sandboxes) == wanted.sandbox]),
        *([] if wanted.text is None else [_says(wanted.text)]),
        *(_has_metadata(key, value) for key, value in (wanted.metadata or {}).items()),
        *_bounds(wanted),
    ]


def matches(wanted: SessionFilter, one: ArchivedSession, *, sandbox: bool) -> bool:
    """The filter of a closed session that the archive does not hold yet; `sandbox` says that its bot has its own clock.

    A search of its messages finds none: they are with the archive only. A test compares it with `conditions`, field by field.
    """
    session = one.session
    metadata = session.session_metadata or {}
    return (
        wanted.text is None
        and (wanted.bots is None or one.strand.bot in wanted.bots)
        and all(_chosen(_value(one, name), getattr(wanted, name)) for name in EQUAL)
        and (wanted.tag is None or wanted.tag in session.tags)
        and (wanted.sandbox is None or wanted.sandbox == sandbox)
        and all(
            any(type(metadata.get(key)) is type(value) and metadata[key] == value for value in _readings(text))
            for key, text in (wanted.metadata or {}).items()
        )
        and _within(session.opened_at_ms, wanted.opened_from_ms, wanted.opened_to_ms)
        and _within(session.closed_at_ms or 0, wanted.closed_from_ms, wanted.closed_to_ms)
        and _within(session.active_ms, wanted.active_ms_from, wanted.active_ms_to)
    )


def _value(one: ArchivedSession, column: str) -> object:
    return one.strand.conversation if column == "conversation_id" else getattr(one.session, column)


def _chosen(value: object, choice: object) -> bool:
    return choice is None or (value in choice if isinstance(choice, frozenset) else value == choice)


def _within(value: int, start: int | None, end: int | None) -> bool:
    return (start is None or value >= start) and (end is None or value < end)


def _is(column: ColumnElement[Any], value: object) -> ColumnElement[bool]:
    return column.in_(sorted(value)) if isinstance(value, frozenset) else column == value


def _says(asked: str) -> ColumnElement[bool]:
    """Whether a message has the words. The first comparison is the index's, which knows words in the forms of all languages."""
    language = messages.c.session_language
    words = func.words_of(language, messages.c.text)
    said = (
        words.op("@@")(func.words_asked_anywhere(asked)),
        words.op("@@")(func.words_asked(language, asked)),
        messages.c.session_id == sessions.c.id,
        messages.c.opened_at == sessions.c.opened_at,
    )
    return select(messages.c.sequence).where(*said).correlate(sessions).exists()


def _has_metadata(key: str, text: str) -> ColumnElement[bool]:
    return or_(*(sessions.c.session_metadata.contains({key: value}) for value in _readings(text)))


def _readings(text: str) -> list[Any]:
    """The text, and the number, true or false that the text is in JSON."""
    values: list[Any] = [text]
    with suppress(ValueError):
        decoded = msgspec.json.decode(text)
        values += [decoded] if isinstance(decoded, bool | int | float) else []
    return values


def _bots(names: frozenset[str] | None) -> list[ColumnElement[bool]]:
    """One bot by equality, since only then its index gives the order of the list."""
    if names is None:
        return []
    listed = sorted(names)
    return [sessions.c.bot_id == listed[0]] if len(listed) == 1 else [sessions.c.bot_id.in_(listed)]


def _bounds(wanted: SessionFilter) -> list[ColumnElement[bool]]:
    opened_from_ms, opened_to_ms = wanted.opened_from_ms, wanted.opened_to_ms
    if wanted.closed_from_ms is not None:
        # No session is open for longer, and the bound on `opened_at` says which months to look into.
        opened_from_ms = max(opened_from_ms or 0, wanted.closed_from_ms - LONGEST_SESSION_MS)
    times = [
        (sessions.c.opened_at.__ge__, opened_from_ms),
        (sessions.c.opened_at.__lt__, opened_to_ms),
        (sessions.c.opened_at.__lt__, wanted.closed_to_ms),
        (sessions.c.closed_at.__ge__, wanted.closed_from_ms),
        (sessions.c.closed_at.__lt__, wanted.closed_to_ms),
    ]
    durations = [
        (sessions.c.active_ms.__ge__, wanted.active_ms_from),
        (sessions.c.active_ms.__lt__, wanted.active_ms_to),
    ]
    bounds = [compare(instant(at_ms)) for compare, at_ms in times if at_ms is not None]
    return bounds + [compare(length_ms) for compare, length_ms in durations if length_ms is not None]


def session_of(row: Row[Any]) -> ArchivedSession:
    """The session of a row of `SESSION_FIELDS`."""
    strand = Strand(row.bot_id, row.conversation_id, row.thread)
    return ArchivedSession(strand, _decode_session(row.detail), row.continuation_of)
