"""One view over live and archive: a session is looked for in Redis first, then in Postgres, and told in one shape.

Redis knows open sessions and lately closed ones, which Postgres may not hold yet; whoever asks for one by id or by its
conversation never sees it missing in between. Lists by filter are of the archive alone.
"""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import session_reads
from app.archive.session_reads import Archived, Filter, Place
from app.domain.records import Message, Session
from app.domain.session_view import session_view
from app.live.view import View

_EXPLAINED = 200


class Sessions:
    """Reads of sessions for the API."""

    def __init__(self, *, live: View, engine: AsyncEngine) -> None:
        self._live = live
        self._engine = engine

    async def find(self, session_id: str) -> Archived | None:
        """The session of this id, open or closed; the id must be a UUID."""
        found = await self._live.find(session_id)
        if found is not None:
            return Archived(found.strand, found.session, None)
        async with self._engine.connect() as conn:
            return await session_reads.find(conn, session_id)

    async def messages(self, session_id: str, *, after: int, limit: int) -> list[Message]:
        """A session's messages in order, those whose sequence is above `after`."""
        kept = await self._live.messages(session_id)
        if kept:
            return [message for message in kept if message.sequence > after][:limit]
        async with self._engine.connect() as conn:
            return await session_reads.messages_of(conn, session_id, after=after, limit=limit)

    async def telling(self, session: Session) -> list[Message]:
        """The messages that an explanation of a session names."""
        ids = [name for name in (session.opened_by, session.deadline_by, session.closed_by) if name]
        kept = await self._live.messages(session.id)
        if kept:
            return [message for message in kept if message.message_id in ids]
        async with self._engine.connect() as conn:
            return await session_reads.messages_by_id(conn, session.id, ids)

    async def page(self, wanted: Filter, *, after: Place | None, limit: int) -> tuple[list[Archived], Place | None]:
        """Closed sessions, the latest opened first, and the place to go on from; None at the end."""
        async with self._engine.connect() as conn:
            found = await session_reads.page(conn, wanted, after=after, limit=limit + 1)
        shown = found[:limit]
        last = shown[-1].session if len(found) > limit else None
        return shown, None if last is None else Place(last.opened_at_ms, last.id)

    async def open_in(self, bot: str, conversation: str) -> list[Archived]:
        """The open sessions of a conversation: one, or several side by side with method `client` or in help windows."""
        strands = await self._live.strands_of(bot, conversation)
        states = [(strand, await self._live.state(strand)) for strand in strands]
        return [Archived(strand, state.session, None) for strand, state in states if state.session is not None]


def told(found: Archived) -> dict[str, Any]:
    """A session as JSON."""
    return session_view(found.strand, found.session) | {"continuation_of": found.continuation_of}
