"""Erases users: a job that goes on where it was stopped, and leaves a receipt.

    request ──> pending ──> note what Redis holds ──> erasing ──> close open sessions ──> wait until the streams hold nothing
                                                         │
            done <── receipt <── rows of the archive <───┴── states, transcripts and variables of Redis

Each step can be repeated: a crash between any two repeats steps and leaves nothing out. From `erasing` on the archivist writes
the user's sessions without the user, so nothing comes back while this runs or afterwards, also not with an older state of Redis.
Sessions that open after the request are kept.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import erasures, rejects
from app.archive.erasures import Erased
from app.closing.rejects import users_of
from app.config.follower import ConfigReplica
from app.domain.instants import ms_of
from app.domain.records import Close, Event, Session
from app.domain.strand import Strand
from app.failpoints import failpoint
from app.live import keys
from app.live.event_stream import StreamRecord, latest_records
from app.live.feed import forget_user
from app.live.ledger import Ledger
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe
from app.live.sandbox import SandboxClocks
from app.live.view import LiveView, state_from

CLOSED_BY = "erasure"
_BACKLOG = 1_000
_KEPT = b"-"  # no state looks so
_ERASE = LuaScript(read_source("app.live", "erase.lua"), when_full=True)
_log = structlog.get_logger(__name__)


class ErasureJob:
    """One worker's; a row is locked while it is worked on, so several workers share the rows."""

    def __init__(
        self, *, engine: AsyncEngine, pipe: Pipe, ledger: Ledger, config: ConfigReplica, sandboxes: SandboxClocks, shards: int
    ) -> None:
        self._engine = engine
        self._pipe = pipe
        self._ledger = ledger
        self._config = config
        self._sandboxes = sandboxes
        self._shards = shards
        self._live = LiveView(pipe, shards=shards)

    async def run_once(self) -> int:
        """Go on with each erasure as far as it goes now; returns how many are done."""
        async with self._engine.connect() as conn:
            waiting = await erasures.next_open(conn)
        return sum([await self._go_on(str(row.id)) for row in waiting])

    async def _go_on(self, erasure: str) -> bool:
        async with self._engine.begin() as conn:
            row = await erasures.lock(conn, erasure)
            if row is not None and row.state == "pending":
                await erasures.begin(conn, erasure, await self._strands(conn, row))
        if row is None:
            return False
        failpoint("erase.after_begin")
        await self._close(row)
        failpoint("erase.after_close")
        if await self._in_streams(row):
            return False  # the archivist has to write them first
        return await self._erase(erasure)

    async def _strands(self, conn: AsyncConnection, row: Row[Any]) -> list[list[str]]:
        """The sessions of the user that Redis holds, as conversation, thread and id: open, closed, and in between."""
        live = await self._live.sessions_of_user(row.bot_id, row.user_id)
        found = {(each.strand, each.session.id) for each in live if _opened_before(row, each.session)}
        for record in await latest_records(self._pipe, shards=self._shards, count=_BACKLOG):
            found |= {(record.strand, event.session.id) for event in record.events if _is_erased(row, record, event)}
        found |= set(await erasures.recent_strands(conn, row.bot_id, row.user_id, before=row.before))
        return [[strand.conversation, strand.thread, session] for strand, session in sorted(found)]

    async def _close(self, row: Row[Any]) -> None:
        bot = self._config.bot_or_deleted(row.bot_id)
        at_ms = None if bot is None else await self._sandboxes.command_ms(bot.id, bot.clock_mode)
        for each in await self._live.sessions_of_user(row.bot_id, row.user_id):
            if _opened_before(row, each.session):
                await self._ledger.submit(each.strand, Close(each.session.id, CLOSED_BY), at_ms=at_ms)

    async def _in_streams(self, row: Row[Any]) -> bool:
        """Whether a record of the user waits for the archivist, or so many wait that this cannot be said."""
        lengths = await self._pipe.call_all([("XLEN", keys.events(shard)) for shard in range(self._shards)])
        if max(lengths) > _BACKLOG:
            return True
        records = await latest_records(self._pipe, shards=self._shards, count=_BACKLOG)
        return any(
            any(_is_erased(row, record, event) for event in record.events)
            or any(record.strand.bot == row.bot_id and entry.message.user_id == row.user_id for entry in record.unassigned)
            for record in records
        )

    async def _erase(self, erasure: str) -> bool:
        """Redis first: it is found by what the rows say. Portions of rows are committed one by one, with their counts."""
        while True:
            async with self._engine.begin() as conn:
                row = await erasures.lock(conn, erasure)
                if row is None:
                    return False
                erased = Erased(str(row.id), ms_of(row.before))
                portion = await erasures.erase_portion(conn, erased, row.bot_id, row.user_id)
                counts = _sum(row.counts, portion)
                if not portion:
                    counts = _sum(counts, await self._erase_rest(conn, erased, row))
                    await erasures.complete(conn, erasure, counts)
                    break
                await erasures.change(conn, erasure, counts=counts)
            failpoint("erase.after_rows")
        _log.info("user erased", erasure=erasure, bot=row.bot_id, **counts)
        return True

    async def _erase_rest(self, conn: AsyncConnection, erased: Erased, row: Row[Any]) -> Mapping[str, int]:
        """Entries without a session, rejects, and Redis. A crash before the commit repeats it on what is left."""
        unassigned = await erasures.erase_unassigned(conn, erased, row.bot_id, row.user_id)
        rejected = [each.id for each in await rejects.of_bot(conn, row.bot_id) if row.user_id in users_of(each.payload)]
        for reject in rejected:
            await rejects.remove(conn, reject)
        views = await erasures.erase_views(conn, row.bot_id, row.user_id)
        variables = await self._erase_redis(row)
        failpoint("erase.after_redis")
        return {"unassigned_entries": unassigned, "rejects": len(rejected), "variables": variables, "saved_views": views}

    async def _erase_redis(self, row: Row[Any]) -> int:
        for conversation, thread, session in row.strands:
            strand = Strand(row.bot_id, conversation, thread)
            shard = keys.shard_of(strand, self._shards)
            await self._erase_state(keys.state(shard, keys.member(strand)), keys.messages(shard, session))
        # Conversations that the bot does not name have the user's in theirs; some have had no session that could be found.
        async for name in self._live.states_named_after(row.bot_id, row.user_id):
            await self._erase_state(name)
        await forget_user(self._pipe, shards=self._shards, bot=row.bot_id, user=row.user_id)
        name = keys.user_variables(row.bot_id, row.user_id)
        count, _ = await self._pipe.call_all([("HLEN", name), ("UNLINK", name)])
        return int(count)

    async def _erase_state(self, name: str, *transcripts: str) -> None:
        stored = await self._pipe.call("GET", name)
        # A strand in which the user has come back keeps its state; its next close takes the place of what it remembers.
        read = _KEPT if state_from(stored).session is not None else stored or b""
        await _ERASE.call(self._pipe, [name, *transcripts], read)


def _is_erased(row: Row[Any], record: StreamRecord, event: Event) -> bool:
    return record.strand.bot == row.bot_id and event.session.user_id == row.user_id and _opened_before(row, event.session)


def _opened_before(row: Row[Any], session: Session) -> bool:
    return session.opened_at_ms <= ms_of(row.before)


def _sum(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {kind: counts.get(kind, 0) + more.get(kind, 0) for kind in {**counts, **more}}
