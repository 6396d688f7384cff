"""One view over live and archive: a session is looked up in Redis first, then in Postgres, and has one shape.

Redis holds open sessions and recently closed ones, which Postgres may not have yet, so a look-up by id or by conversation never
misses a session in between. If one server is unreachable, the other answers for what it holds; a look-up is refused as
unavailable only if neither can answer. A list of closed sessions is the archive's with those that are not archived yet among
them: it reads Redis first, so a session that is archived meanwhile is in both, and shown once. The caller checks what a key may
see.
"""

from collections.abc import Awaitable
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import late_entries, session_reads
from app.archive.late_entries import UnassignedPlace
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionOrder, SessionPlace
from app.config.follower import ConfigReplica
from app.domain.records import Message, Session
from app.domain.session_view import session_view
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live.view import DuePosition, LiveSession, LiveView, OpenPosition, UpcomingChoice


class Sessions:
    """Reads of sessions for the API."""

    def __init__(self, *, live: LiveView, engine: AsyncEngine, config: ConfigReplica) -> None:
        self._live = live
        self._config = config
        self._engine = engine

    async def find(self, session_id: str, *, within: frozenset[str] | None = None) -> ArchivedSession | None:
        """The session of this id, open or closed, if it is of one of these bots (None: of any); the id must be a UUID.

        For a session of another bot it makes the same reads as for one that does not exist. Raise `Unavailable` if neither
        server can answer.
        """
        unreachable: Unavailable | None = None
        try:
            found = await self._live.find(session_id, within=within)
        except Unavailable as error:
            found, unreachable = None, error
        if found is not None:
            return _as_archived(found)
        async with self._engine.connect() as conn:
            archived = await session_reads.find(conn, session_id, within=within)
        if archived is None and unreachable is not None:
            raise unreachable
        return archived

    async def messages(self, session: Session, *, after: int, limit: int, most_bytes: int) -> list[Message]:
        """A session's messages in order, those whose sequence is above `after`: `limit` at most, two or `most_bytes` at least."""
        whole = 0 if session.closed_at_ms is None else session.entries + session.late_entries
        reading = self._live.messages(session.id, after=after, limit=limit, most_bytes=most_bytes, whole=whole)
        live = await self._live_or_none(session, reading)
        if live:
            return live
        async with self._engine.connect() as conn:
            return await session_reads.messages_of(conn, session.id, after=after, limit=limit, most_bytes=most_bytes)

    async def messages_to_explain(self, session: Session) -> list[Message]:
        """The messages that the explanation of a session names."""
        ids = [name for name in (session.opened_by, session.deadline_by, session.closed_by) if name]
        live = await self._live_or_none(session, self._live.messages_named(session.id, ids))
        if live:
            return live
        async with self._engine.connect() as conn:
            return await session_reads.messages_by_id(conn, session.id, ids)

    async def page(
        self, wanted: SessionFilter, *, order: SessionOrder = "-opened_at", after: SessionPlace | None, limit: int
    ) -> list[ArchivedSession]:
        """Closed sessions in this order, those after `after`."""
        waiting = await self._unarchived(wanted)
        async with self._engine.connect() as conn:
            archived = await session_reads.page(conn, wanted, order=order, after=after, limit=limit)
        return _merged(waiting, archived, order=order, after=after)[:limit]

    async def find_by_message(self, bot: str, message_id: str, *, user: str | None = None) -> ArchivedSession | None:
        """The session of a bot that has the message of this id: an open one, or of several closed ones the one opened last."""
        try:
            held = await self._live.find_message(bot, message_id, user=user)
            if held is None:
                closed = [each for each in await self._live.unarchived() if each.strand.bot == bot]
                held = await self._live.holding(message_id, closed)
        except Unavailable:
            held = None
        if held is not None:
            return _as_archived(held)
        async with self._engine.connect() as conn:
            return await session_reads.find_by_message(conn, bot, message_id)

    async def unassigned(self, bot: str, *, after: UnassignedPlace | None, limit: int, most_bytes: int) -> list[Row[Any]]:
        """A bot's entries without a session, the latest first: rows of `unassigned_entries`."""
        async with self._engine.connect() as conn:
            return await late_entries.unassigned_page(conn, bot, after=after, limit=limit, most_bytes=most_bytes)

    async def live_page(
        self, bot: str, *, after: OpenPosition | None, limit: int
    ) -> tuple[list[tuple[OpenPosition, ArchivedSession]], OpenPosition | None]:
        """A bot's open sessions by position, the longest open first, and the position to go on from; None at the end."""
        found, place = await self._live.page(bot, after=after, limit=limit)
        return [(position, _as_archived(one)) for position, one in found], place

    async def upcoming(
        self, choice: UpcomingChoice, *, after: DuePosition | None, limit: int
    ) -> tuple[list[tuple[DuePosition, ArchivedSession]], DuePosition | None]:
        """Open sessions, the next due first, as `LiveView.upcoming`."""
        found, place = await self._live.upcoming(choice, after=after, limit=limit)
        return [(position, _as_archived(one)) for position, one in found], place

    async def _unarchived(self, wanted: SessionFilter) -> list[ArchivedSession]:
        """Closed sessions that the archive may not hold yet; none if Redis is unreachable, as the archive answers alone then."""
        try:
            closed = await self._live.unarchived()
        except Unavailable:
            return []
        found = [_as_archived(each) for each in closed]
        return [one for one in found if session_reads.matches(wanted, one, sandbox=self._is_sandbox(one.strand.bot))]

    def _is_sandbox(self, bot: str) -> bool:
        config = self._config.bot_or_deleted(bot)
        return config is not None and config.sandbox

    async def open_in(self, bot: str, conversation: str) -> list[ArchivedSession]:
        """A conversation's open sessions; with method `client` or in help windows there may be several."""
        strands = {Strand(bot, conversation), *await self._live.strands_of(bot, conversation)}
        states = [(strand, await self._live.state(strand)) for strand in sorted(strands)]
        return [ArchivedSession(strand, state.session, None) for strand, state in states if state.session is not None]

    async def open_of_user(self, bot: str, user: str) -> list[ArchivedSession]:
        """A user's open sessions over all channels, the longest open first."""
        return [_as_archived(one) for one in await self._live.sessions_of_user(bot, user)]

    async def _live_or_none(self, session: Session, reading: Awaitable[list[Message]]) -> list[Message]:
        """The session's messages in Redis; none if Redis is unreachable and Postgres may have them."""
        try:
            return await reading
        except Unavailable:
            if session.closed_at_ms is None:
                raise
            return []


def _merged(
    waiting: list[ArchivedSession], archived: list[ArchivedSession], *, order: SessionOrder, after: SessionPlace | None
) -> list[ArchivedSession]:
    """A page of the archive with the sessions that belong on it and are not archived, in order, each once."""
    descending = order.startswith("-")

    def key(one: ArchivedSession) -> tuple[int, str]:
        place = session_reads.place_of(one.session, order)
        return place.at_ms, place.id

    known = {one.session.id for one in archived}
    start = None if after is None else (after.at_ms, after.id)
    added = [
        one
        for one in waiting
        if one.session.id not in known and (start is None or (key(one) < start if descending else key(one) > start))
    ]
    return sorted([*archived, *added], key=key, reverse=descending)


def view(found: ArchivedSession) -> dict[str, Any]:
    """A session as JSON."""
    return session_view(found.strand, found.session) | {"continuation_of": found.continuation_of}


def _as_archived(found: LiveSession) -> ArchivedSession:
    return ArchivedSession(found.strand, found.session, None)
