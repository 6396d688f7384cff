"""Exports everything that is kept of one user of a bot, as NDJSON in constant memory: a line a thing, with its `kind`.

    open and unarchived sessions (Redis) ──> archived sessions (Postgres) ──> the rest

In this order nothing can move past the export: a session leaves Redis only once Postgres has it. A session that is archived while
it is exported may have lines twice; ids name what is the same. It refuses nothing and changes nothing.
"""

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Any, Literal

from msgspec import Struct, json
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import deliveries, erasures, late_entries, rejects
from app.archive.session_reads import ArchivedSession, SessionFilter
from app.archive.tables import instant
from app.domain.instants import ms_of, rfc3339
from app.domain.records import State
from app.domain.session_view import context_view, message_view, variable_view, variables_view
from app.domain.strand import Strand
from app.live import keys
from app.live.event_stream import waiting_records
from app.live.pipe import Pipe
from app.live.users import UserVariables
from app.live.view import LiveView, messages_of
from app.queries.exports import as_ndjson, messages_in, session_pages, session_row

LineKind = Literal["session", "message", "delivery", "unassigned_entry", "reject", "conversation", "variable"]
ExportLine = dict[str, Any]

_DELIVERIES_A_PAGE = 100
_MOST_BYTES = 4 << 20
_SESSIONS_AT_ONCE = 200
_UNASSIGNED_A_PAGE = 100


class ExportedUser(Struct, frozen=True):
    """A user whose data is exported, and the instant in the bot's own time."""

    bot: str
    id: str
    now_ms: int


class UserExport:
    """Reads one user's data from Redis and Postgres. `reject_of` gives the data of a reject if it holds some of a user."""

    def __init__(
        self,
        user: ExportedUser,
        *,
        engine: AsyncEngine,
        pipe: Pipe,
        shards: int,
        reject_of: Callable[[bytes, str], ExportLine | None],
    ) -> None:
        self.user = user
        self._engine = engine
        self._pipe = pipe
        self._shards = shards
        self._live = LiveView(pipe, shards=shards)
        self._reject_of = reject_of
        self._in_redis: set[str] = set()  # sessions
        self._strands: set[Strand] = set()
        self._waiting: set[tuple[str, str]] = set()  # entries without a session: message id and instant

    async def encoded(self) -> AsyncIterator[bytes]:
        """The lines, in pieces."""
        parts = (self._live_sessions, self._archived_sessions, self._unassigned, self._rejects, self._conversations)
        for part in parts:
            async for lines in part():
                yield as_ndjson(lines)
        yield as_ndjson(await self._variables())

    async def _live_sessions(self) -> AsyncIterator[list[ExportLine]]:
        """Sessions that are open, and those that are closed or updated and not archived yet."""
        looked_at: set[str] = set()
        for one in await self._live.sessions_of_user(self.user.bot, self.user.id):
            looked_at.add(one.session.id)
            async for lines in self._live_session(one.session.id):
                yield lines
        async for record in waiting_records(self._pipe, shards=self._shards):
            if record.strand.bot != self.user.bot:
                continue
            ids = {each.session.id for each in record.events if each.session.user_id == self.user.id} - looked_at
            looked_at |= ids
            for session in sorted(ids):
                async for lines in self._live_session(session):
                    yield lines
            for entry in record.unassigned:
                if entry.message.user_id == self.user.id:
                    view = message_view(entry.message)
                    self._waiting.add(_name_of(view))
                    yield [_line("unassigned_entry", {"reason": entry.reason, "message": view})]

    async def _live_session(self, session: str) -> AsyncIterator[list[ExportLine]]:
        found = await self._live.find(session)
        if found is not None:
            self._in_redis.add(session)
            self._strands.add(found.strand)
            yield [_line("session", session_row(ArchivedSession(found.strand, found.session, None)))]
        one = {"session_id": session, "bot": self.user.bot}
        async for portion in self._live.portions(session):
            yield [_line("message", one | message_view(message)) for message in messages_of(portion)]

    async def _archived_sessions(self) -> AsyncIterator[list[ExportLine]]:
        wanted = SessionFilter(bots=frozenset({self.user.bot}), user_id=self.user.id)
        without_row = set(self._in_redis)
        async for page in session_pages(self._engine, wanted):
            new = [one for one in page if one.session.id not in self._in_redis]
            yield [_line("session", session_row(one)) for one in new]
            async for rows in messages_in(self._engine, new):
                yield [_line("message", row) for row in rows]
            ids = {one.session.id for one in page}
            without_row -= ids
            async for lines in self._deliveries(ids):
                yield lines
        # Open sessions have deliveries, too: of events before their close.
        for portion in _portions(sorted(without_row)):
            async for lines in self._deliveries(portion):
                yield lines

    async def _deliveries(self, sessions: Collection[str]) -> AsyncIterator[list[ExportLine]]:
        after: str | None = None
        while True:
            async with self._engine.connect() as conn:
                rows = await deliveries.of_sessions(conn, sessions, after=after, limit=_DELIVERIES_A_PAGE, most_bytes=_MOST_BYTES)
                tried = await deliveries.attempts_of_all(conn, [row.id for row in rows])
            if not rows:
                return
            yield [_line("delivery", _delivery(row, tried[row.id])) for row in rows]
            after = rows[-1].id

    async def _unassigned(self) -> AsyncIterator[list[ExportLine]]:
        after: late_entries.UnassignedPlace | None = None
        while True:
            async with self._engine.connect() as conn:
                rows = await late_entries.unassigned_page(
                    conn, self.user.bot, after=after, limit=_UNASSIGNED_A_PAGE, most_bytes=_MOST_BYTES
                )
            if not rows:
                return
            views = [late_entries.unassigned_view(row) for row in rows if row.entry["user_id"] == self.user.id]
            yield [_line("unassigned_entry", view) for view in views if _name_of(view["message"]) not in self._waiting]
            after = late_entries.UnassignedPlace(ms_of(rows[-1].received_at), rows[-1].id)

    async def _rejects(self) -> AsyncIterator[list[ExportLine]]:
        """One at a time: each may be as large as a session."""
        async with self._engine.connect() as conn:
            ids = await rejects.ids(conn, bots=frozenset({self.user.bot}))
        for reject in ids:
            async with self._engine.connect() as conn:
                row = await rejects.find(conn, reject)
            data = None if row is None else self._reject_of(row.payload, self.user.id)
            if row is not None and data is not None:
                yield [_line("reject", {"id": row.id, "at": rfc3339(ms_of(row.at)), "session_id": row.session_id} | data)]

    async def _conversations(self) -> AsyncIterator[list[ExportLine]]:
        """Dialog and variables of the conversations that Redis still holds."""
        async with self._engine.connect() as conn:
            recent = await erasures.recent_strands(conn, self.user.bot, self.user.id, before=instant(self.user.now_ms))
        self._strands |= {strand for strand, _ in recent}
        named = [keys.strand_of_state(name) async for name in self._live.states_named_after(self.user.bot, self.user.id)]
        for strand in sorted(self._strands | set(named)):
            state = await self._live.state(strand)
            if strand in named or _last_user(state) == self.user.id:
                yield [_line("conversation", _conversation(strand, state, self.user.now_ms))]

    async def _variables(self) -> list[ExportLine]:
        stored = await UserVariables(self._pipe).read(self.user.bot, self.user.id, now_ms=self.user.now_ms)
        return [_line("variable", {"name": name} | variable_view(variable)) for name, variable in stored.items()]


def _line(kind: LineKind, data: ExportLine) -> ExportLine:
    return {"kind": kind} | data


def _name_of(message: ExportLine) -> tuple[str, str]:
    return message["message_id"], message["received_at"]


def _portions(ids: list[str]) -> Iterable[list[str]]:
    return (ids[first : first + _SESSIONS_AT_ONCE] for first in range(0, len(ids), _SESSIONS_AT_ONCE))


def _last_user(state: State) -> str | None:
    last = state.session or state.last
    return None if last is None else last.user_id


def _conversation(strand: Strand, state: State, now_ms: int) -> ExportLine:
    names = {"conversation_id": strand.conversation, "thread": strand.thread or None}
    return names | context_view(state) | {"variables": variables_view(state, now_ms)}


def _delivery(row: Row[Any], tried: list[Row[Any]]) -> ExportLine:
    return {
        "id": row.id,
        "endpoint_id": row.endpoint_id,
        "session_id": row.session_id,
        "event": row.event,
        "status": row.status,
        "created_at": rfc3339(ms_of(row.created_at)),
        "payload": json.decode(row.body),
        "attempts": [{"started_at": rfc3339(ms_of(each.started_at)), "reply": each.reply, "error": each.error} for each in tried],
    }
