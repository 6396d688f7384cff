"""Reads of live sessions, for the API. It writes nothing and decides nothing."""

from collections.abc import Iterable

from msgspec import Struct

from app.domain.records import Message, Session, State
from app.domain.strand import Strand
from app.live import keys
from app.live.fold import decode_message, decode_session, decode_state
from app.live.pipe import Pipe


class Found(Struct, frozen=True):
    """A session that Redis still knows: open, or closed so lately that Postgres may not have it yet."""

    strand: Strand
    session: Session


class View:
    """Live sessions of all shards, through the process's connection."""

    def __init__(self, pipe: Pipe, *, shards: int) -> None:
        self._pipe = pipe
        self._shards = shards

    async def find(self, session_id: str) -> Found | None:
        """The session of this id, open or lately closed; None if Redis does not know it."""
        shard = keys.shard_of_session(session_id, self._shards)
        name = keys.messages(shard, session_id)
        member, closed = await self._pipe.call("HMGET", name, keys.STRAND_FIELD, keys.CLOSED_FIELD)
        if member is None:
            return None
        strand = keys.strand_from(member.decode())
        if closed is not None:
            return Found(strand, decode_session(closed))
        state = await self.state(strand)
        return Found(strand, state.session) if state.session and state.session.id == session_id else None

    async def state(self, strand: Strand) -> State:
        """A strand's state; the default one if Redis does not know it."""
        stored = await self._pipe.call("GET", keys.state(keys.shard_of(strand, self._shards), keys.member(strand)))
        return _state(stored)

    async def messages(self, session_id: str) -> list[Message]:
        """What is kept of a session's entries, in order; empty if Redis does not know it."""
        shard = keys.shard_of_session(session_id, self._shards)
        return messages_of(await self._pipe.call("HGETALL", keys.messages(shard, session_id)))

    async def page(self, bot: str, *, after: tuple[int, str] | None, limit: int) -> list[Found]:
        """Open sessions of a bot, the longest open first; `after` is (`opened_at_ms`, session id) of the last one seen."""
        start = str(after[0]) if after else "-inf"
        count = limit + 1
        found: list[Found] = []
        while len(found) < limit:
            # Sessions opened in the same ms as the last one seen are read again and passed over.
            found = [
                item
                for item in await self._open(bot, start=start, count=count)
                if after is None or (item.session.opened_at_ms, item.session.id) > after
            ]
            if len(found) >= limit or count > 16 * (limit + 1):
                break
            count *= 4
        return found[:limit]

    async def count(self, bot: str) -> int:
        """How many sessions of a bot are open."""
        names = [keys.live(shard, bot) for shard in range(self._shards)]
        return sum(await self._pipe.call_all([("ZCARD", name) for name in names]))

    async def open_strands(self, bot: str) -> list[Strand]:
        """The strands of a bot's open sessions."""
        names = [keys.live(shard, bot) for shard in range(self._shards)]
        members = await self._pipe.call_all([("ZRANGE", name, 0, -1) for name in names])
        return [keys.strand_from(member.decode()) for shard in members for member in shard]

    async def _open(self, bot: str, *, start: str, count: int) -> list[Found]:
        calls = [
            ("ZRANGEBYSCORE", keys.live(shard, bot), start, "+inf", "WITHSCORES", "LIMIT", 0, count)
            for shard in range(self._shards)
        ]
        scored: list[tuple[float, str]] = []
        for reply in await self._pipe.call_all(calls):
            scored.extend((float(reply[i + 1]), reply[i].decode()) for i in range(0, len(reply), 2))
        strands = [keys.strand_from(member) for _, member in sorted(scored)[:count]]
        return await self._sessions(strands)

    async def _sessions(self, strands: Iterable[Strand]) -> list[Found]:
        wanted = list(strands)
        names = [keys.state(keys.shard_of(strand, self._shards), keys.member(strand)) for strand in wanted]
        stored = await self._pipe.call_all([("GET", name) for name in names])
        found = [
            Found(strand, session)
            for strand, value in zip(wanted, stored, strict=True)
            if (session := _state(value).session) is not None
        ]
        return sorted(found, key=lambda item: (item.session.opened_at_ms, item.session.id))


def messages_of(fields: list[bytes]) -> list[Message]:
    """The messages in the reply of HGETALL, by sequence."""
    kept = (fields[i + 1] for i in range(0, len(fields), 2) if not fields[i].startswith(b"\x1f"))
    return sorted(map(decode_message, kept), key=lambda message: message.sequence)


def _state(stored: bytes | None) -> State:
    return decode_state(stored.partition(b":")[2]) if stored else State()
