"""Reads of live sessions, for the API and the archivist. It writes nothing and decides nothing."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from sys import maxsize

import structlog
from msgspec import Struct
from redis.exceptions import ResponseError

from app.domain.records import Message, Session, State
from app.domain.session_view import first_messages
from app.domain.strand import Strand
from app.failures import BadData
from app.live import keys
from app.live.codec import UNREADABLE, decode_message, decode_session, decode_state
from app.live.event_stream import latest_records
from app.live.pipe import Pipe, RedisReply

log = structlog.get_logger(__name__)


class LiveSession(Struct, frozen=True):
    """A session that Redis holds: open, or closed so lately that Postgres may not have it yet."""

    strand: Strand
    session: Session


_STRAND = keys.STRAND_FIELD.encode()
_PORTION_BYTES = 4 << 20
_MOST_AT_ONCE = 1_000
_MOST_LOOKED_AT = 50_000
_BACKLOG = 1_000

OpenPosition = tuple[int, bytes]
"""A position in a bot's list of open sessions: `opened_at_ms` and the strand as a member."""

DuePosition = tuple[int, bytes]
"""A position in the list of open sessions by the instant at which they are due: that instant and the strand as a member."""


class UpcomingChoice(Struct, frozen=True):
    """The open sessions that a list by deadline shows: `wanted` ones of the bots that `covers` takes.

    Sandbox bots have a time of their own: the sets of `sandboxes` alone are read beside that of the others.
    """

    sandboxes: Sequence[str]
    covers: Callable[[str], bool]
    wanted: Callable[[LiveSession], bool]


class LiveView:
    """Live sessions of all shards, through the process's connection."""

    def __init__(self, pipe: Pipe, *, shards: int) -> None:
        self._pipe = pipe
        self._shards = shards

    async def find(self, session_id: str, *, within: frozenset[str] | None = None) -> LiveSession | None:
        """The session of this id, open or lately closed; None if Redis does not hold it, or it is of none of these bots.

        A late entry writes into the message hash also where that has expired: such a remainder lacks `STRAND_FIELD`, serves to
        recognise repeats, and counts as not held.
        """
        shard = keys.shard_of_session(session_id, self._shards)
        name = keys.messages(shard, session_id)
        member, closed = await self._pipe.call("HMGET", name, keys.STRAND_FIELD, keys.CLOSED_FIELD)
        if member is None:
            return None
        strand = keys.strand_from(member.decode())
        if within is not None and strand.bot not in within:
            return None
        if closed is not None:
            return LiveSession(strand, decode_session(closed))
        state = await self.state(strand)
        return LiveSession(strand, state.session) if state.session and state.session.id == session_id else None

    async def state(self, strand: Strand) -> State:
        """A strand's state; the default one if Redis does not hold it."""
        stored = await self._pipe.call("GET", keys.state(keys.shard_of(strand, self._shards), keys.member(strand)))
        return state_from(stored)

    async def messages(
        self, session_id: str, *, after: int = 0, limit: int = maxsize, most_bytes: int = maxsize, whole: int = 0
    ) -> list[Message]:
        """The first messages of a session above `after`; empty if Redis does not hold all of them, which are `whole` at least.

        No more are kept in memory, however long the session is.
        """
        held, counted, first = False, 0, list[Message]()
        async for portion in self.portions(session_id):
            held = held or _STRAND in portion[::2]
            found = messages_of(portion)
            counted += len(found)
            first = first_messages([*first, *found], after=after, limit=limit, most_bytes=most_bytes)
        return first if held and counted >= whole else []

    async def transcript(self, session_id: str) -> list[bytes]:
        """The fields and values, alternating, of a session's message hash, each once."""
        return [part async for portion in self.portions(session_id) for part in portion]

    async def portions(self, session_id: str) -> AsyncIterator[list[bytes]]:
        """The same in portions of some megabytes, in no order.

        A long session read at once would block Redis, and every caller on this process's connection.
        """
        name = keys.messages(keys.shard_of_session(session_id, self._shards), session_id)
        size, fields = await self._pipe.call_all([("MEMORY", "USAGE", name), ("HLEN", name)])
        known_size = isinstance(size, int) and isinstance(fields, int) and size > 0
        count = max(1, min(_MOST_AT_ONCE, _PORTION_BYTES * fields // size)) if known_size else 1
        known: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, found = await self._pipe.call("HSCAN", name, cursor, "COUNT", count)
            new = [i for i in range(0, len(found), 2) if found[i] not in known]  # a hash that grows meanwhile gives some twice
            known.update(found[i] for i in new)
            yield [part for i in new for part in (found[i], found[i + 1])]
            if cursor == b"0":
                return

    async def messages_named(self, session_id: str, ids: Sequence[str]) -> list[Message]:
        """A session's messages that have these ids; empty if Redis does not hold it."""
        name = keys.messages(keys.shard_of_session(session_id, self._shards), session_id)
        whole, *stored = await self._pipe.call("HMGET", name, keys.STRAND_FIELD, *ids)
        return [decode_message(message) for message in stored if message is not None] if whole is not None else []

    async def page(
        self, bot: str, *, after: OpenPosition | None, limit: int
    ) -> tuple[list[tuple[OpenPosition, LiveSession]], OpenPosition | None]:
        """Open sessions of a bot by position, the longest open first, and the position to continue from; None at the end.

        A session that closes while the list is walked may be left out; one that stays open is given exactly once.
        """
        shards = [self._positions(keys.live(shard, bot), after=after, count=limit + 1) for shard in range(self._shards)]
        positions = sorted(position for found in await asyncio.gather(*shards) for position in found)
        shown = positions[:limit]
        found = await self._sessions(strands_in((member for _, member in shown), of=f"the open sessions of {bot}"))
        by_member = {keys.member(each.strand).encode(): each for each in found}
        held = [(position, by_member[position[1]]) for position in shown if position[1] in by_member]
        return held, shown[-1] if len(positions) > limit else None

    async def sessions_of_user(self, bot: str, user: str) -> list[LiveSession]:
        """A user's open sessions over all channels, the longest open first."""
        start, end = keys.user_range(user)
        replies = await self._pipe.call_all(
            [("ZRANGEBYLEX", keys.users(shard, bot), start, end) for shard in range(self._shards)]
        )
        members = [member for reply in replies for member in _or_raise(reply)]
        found = await self._sessions(strands_in((keys.live_member(bot, member) for member in members), of=f"the users of {bot}"))
        return sorted((each for each in found if each.session.user_id == user), key=lambda each: each.session.opened_at_ms)

    async def unarchived(self) -> list[LiveSession]:
        """Closed sessions that the archive may not hold yet, as they are after their latest late entry.

        Of a long backlog (Postgres was down for long) only the latest `_BACKLOG` records of each shard are read.
        """
        found: dict[str, LiveSession] = {}
        for record in await latest_records(self._pipe, shards=self._shards, count=_BACKLOG):
            for event in reversed(record.events):
                if event.session.closed_at_ms is not None:
                    found.setdefault(event.session.id, LiveSession(record.strand, event.session))
        return list(found.values())

    async def states_named_after(self, bot: str, user: str) -> AsyncIterator[str]:
        """The names of the states of a user's conversations that the bot does not name; it looks at every key."""
        pattern = keys.states_of_user(bot, user)
        cursor = b"0"
        while True:
            cursor, names = await self._pipe.call("SCAN", cursor, "MATCH", pattern, "COUNT", _BACKLOG)
            for name in names:
                yield name.decode()
            if cursor == b"0":
                return

    async def find_message(self, bot: str, message_id: str, *, user: str | None = None) -> LiveSession | None:
        """The open session of a bot that has a message.

        With `user` only that user's open sessions are looked at; without, all of them, page by page.
        """
        if user is not None:
            return await self.holding(message_id, await self.sessions_of_user(bot, user))
        after: OpenPosition | None = None
        while True:
            page, after = await self.page(bot, after=after, limit=_MOST_AT_ONCE)
            found = await self.holding(message_id, [each for _, each in page])
            if found is not None or after is None:
                return found

    async def holding(self, message_id: str, sessions: Sequence[LiveSession]) -> LiveSession | None:
        """The first of these sessions that has a message of this id."""
        names = [keys.messages(keys.shard_of_session(each.session.id, self._shards), each.session.id) for each in sessions]
        replies = await self._pipe.call_all([("HEXISTS", name, message_id) for name in names])
        return next((each for each, reply in zip(sessions, replies, strict=True) if _or_raise(reply)), None)

    async def count(self, bot: str) -> int:
        """How many sessions of a bot are open."""
        names = [keys.live(shard, bot) for shard in range(self._shards)]
        return sum(await self._pipe.call_all([("ZCARD", name) for name in names]))

    async def strands_of(self, bot: str, conversation: str) -> list[Strand]:
        """The strands of a conversation that have an open session."""
        name = keys.live(keys.shard_of(Strand(bot, conversation), self._shards), bot)
        alone = Strand(bot, conversation)
        pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", keys.member(alone)) + "*"
        members: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, found = await self._pipe.call("ZSCAN", name, cursor, "MATCH", pattern, "COUNT", 1_000)
            members.update(found[::2])
            if cursor == b"0":
                return sorted(strands_in(members, of=name))

    async def upcoming(
        self, choice: UpcomingChoice, *, after: DuePosition | None, limit: int
    ) -> tuple[list[tuple[DuePosition, LiveSession]], DuePosition | None]:
        """The open sessions of a choice, the next due first, and the position to continue from; None at the end.

        Due is a session at its reminder or at its deadline. A page may be short, since what one request looks at is bounded.
        """
        found: list[tuple[DuePosition, LiveSession]] = []
        looked_at = 0
        while True:
            positions = await self._due_positions(choice.sandboxes, after=after, count=_MOST_AT_ONCE)
            covered = [each for each in positions if choice.covers(keys.bot_of_member(each[1]))]
            for start in range(0, len(covered), limit):
                portion = covered[start : start + limit]
                for each in await self._sessions_at(portion):
                    if len(found) == limit:
                        return found, after
                    after = each[0]
                    if choice.wanted(each[1]):
                        found.append(each)
                after = portion[-1]
            if len(positions) < _MOST_AT_ONCE:
                return found, None
            after = positions[-1]
            looked_at += len(positions)
            if looked_at >= _MOST_LOOKED_AT:
                return found, after

    async def _due_positions(self, sandboxes: Sequence[str], *, after: DuePosition | None, count: int) -> list[DuePosition]:
        """The first `count` positions after `after` in the sets of all shards."""
        names = [keys.due(shard, bot) for shard in range(self._shards) for bot in (None, *sandboxes)]
        found = await asyncio.gather(*(self._positions(name, after=after, count=count) for name in names))
        return sorted(position for positions in found for position in positions)[:count]

    async def _sessions_at(self, positions: Sequence[DuePosition]) -> list[tuple[DuePosition, LiveSession]]:
        """The open sessions at these positions; a strand that is only due to be cleaned up has none."""
        placed = [(each, strand) for each in positions if (strand := keys.strand_or_none(each[1])) is not None]
        found = {one.strand: one for one in await self._sessions([strand for _, strand in placed])}
        return [(position, found[strand]) for position, strand in placed if strand in found]

    async def _positions(self, name: str, *, after: OpenPosition | None, count: int) -> list[OpenPosition]:
        """At least `count` positions of a sorted set after `after`, if there are so many."""
        start, asked = ("-inf", count) if after is None else (str(after[0]), 2 * count)
        while True:
            reply = await self._pipe.call("ZRANGEBYSCORE", name, start, "+inf", "WITHSCORES", "LIMIT", 0, asked)
            read = [(int(float(reply[i + 1])), bytes(reply[i])) for i in range(0, len(reply), 2)]
            positions = [position for position in read if after is None or position > after]
            # Sessions opened in the same ms, at or before the position, are read again and skipped.
            if len(positions) >= count or len(read) < asked:
                return positions
            asked *= 4

    async def _sessions(self, strands: Sequence[Strand]) -> list[LiveSession]:
        names = [keys.state(keys.shard_of(strand, self._shards), keys.member(strand)) for strand in strands]
        stored = await self._pipe.call_all([("GET", name) for name in names])
        return [
            LiveSession(strand, session)
            for strand, value in zip(strands, stored, strict=True)
            if (session := state_from(value).session) is not None
        ]


def messages_of(fields: list[bytes]) -> list[Message]:
    """The messages among a hash's fields and values, by sequence. Raises `BadData` if one cannot be read."""
    kept = (fields[i + 1] for i in range(0, len(fields), 2) if not fields[i].startswith(b"\x1f"))
    try:
        return sorted(map(decode_message, kept), key=lambda message: message.sequence)
    except UNREADABLE as error:
        raise BadData(f"a message cannot be read: {error}") from error


def _or_raise(reply: RedisReply) -> RedisReply:
    if isinstance(reply, ResponseError):
        raise reply
    return reply


def strands_in(members: Iterable[bytes], *, of: str) -> list[Strand]:
    """The strands that members of the set `of` name. Members that this product did not write are logged and skipped."""
    strands = []
    for member in members:
        strand = keys.strand_or_none(member)
        if strand is None:
            log.error("a member of a Redis set names no conversation", key=of, member=repr(member)[:300])
        else:
            strands.append(strand)
    return strands


def state_from(stored: bytes | None) -> State:
    """A state as it is stored: a version, a colon, and the value; the default one where there is none."""
    return decode_state(stored.partition(b":")[2]) if stored else State()
