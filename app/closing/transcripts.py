"""Reads the transcripts of closed sessions from Redis, no more at once than Redis and Postgres can take.

A batch of records falls into parts, each for one transaction. A transcript that is too long for a part of its own is read and
written in portions. Data that cannot be read raises `BadData`, so trying again is useless; every other error is about
Redis. Nothing is written here.

Late messages are left out, although Redis keeps them with their session: a late message is archived with its own event alone.
Archived with the transcript, it would lose its webhook if Redis came back without the event.
"""

from collections.abc import AsyncIterator, Iterator, Sequence

from msgspec import Struct
from redis.exceptions import ResponseError

from app.archive.sessions import ClosedSession
from app.domain.records import Message
from app.errors import Unavailable
from app.failures import BadData
from app.live import keys
from app.live.event_stream import StreamRecord
from app.live.pipe import Pipe
from app.live.view import LiveView, messages_of

# Of transcripts as Redis holds them. A transcript that is longer is a part of its own and comes in portions.
_PART_BYTES = 16 << 20


class Part(Struct, frozen=True):
    """Records that are archived in one transaction. `long`: it is one record, whose transcript comes in portions."""

    records: Sequence[StreamRecord]
    long: bool = False


class Transcripts:
    """Transcripts of all shards, through one connection."""

    def __init__(self, pipe: Pipe, *, shards: int) -> None:
        self._pipe = pipe
        self._view = LiveView(pipe, shards=shards)

    async def sizes(self, records: Sequence[StreamRecord]) -> list[int]:
        """How many bytes of transcripts come with each record."""
        names = [(at, keys.messages(record.shard, session)) for at, record in enumerate(records) for session in record.ended]
        sizes = [0] * len(records)
        replies = await self._pipe.call_all([("MEMORY", "USAGE", name) for _, name in names])
        for (index, _), size in zip(names, replies, strict=True):
            sizes[index] += size if isinstance(size, int) else 0
        return sizes

    async def closed_sessions(self, part: Part) -> list[ClosedSession]:
        """The sessions that a part closes, with their messages unless it is long. Raises `BadData`."""
        for record in part.records:
            if record.fault is not None:
                raise record.fault
        closes = [(record, event.session) for record in part.records for event in record.events if event.type == "session.closed"]
        if part.long:
            return [ClosedSession(record.strand, session, ()) for record, session in closes]
        replies = await self._pipe.call_all([("HGETALL", keys.messages(record.shard, session.id)) for record, session in closes])
        return [
            ClosedSession(record.strand, session, _messages(reply))
            for (record, session), reply in zip(closes, replies, strict=True)
        ]

    async def portions(self, session_id: str) -> AsyncIterator[list[Message]]:
        """A session's messages in portions of some megabytes. Raises `BadData`."""
        async for portion in self._view.portions(session_id):
            yield _messages(portion)

    async def raw(self, session_id: str) -> list[bytes]:
        """The fields and values, in turns, of the hash that holds a transcript; none if its key holds something else."""
        try:
            return await self._view.transcript(session_id)
        except ResponseError as error:
            if _is_no_transcript(error):
                return []
            raise


def split(
    records: Sequence[StreamRecord], sizes: Sequence[int], *, most: int, last: frozenset[str] = frozenset()
) -> Iterator[Part]:
    """The records in parts of a bounded size, of `most` records each, in the order in which to archive them.

    A record that cannot be read is a part of its own, and first: it is only to be rejected. A long transcript is a part of its
    own, and last: a part that fails holds up only the parts behind it. Before it come the records of the bots `last`. Late
    entries come after the closes of other sessions, of which theirs may be one.
    """
    yield from (Part([record]) for record in records if record.fault is not None)
    part: list[StreamRecord] = []
    left = _PART_BYTES
    readable = ((size, record) for size, record in zip(sizes, records, strict=True) if record.fault is None)
    for size, record in sorted(readable, key=lambda item: _place(item[0], item[1], last)):
        if part and (size > left or len(part) >= most):
            yield Part(part)
            part, left = [], _PART_BYTES
        if size > _PART_BYTES:
            yield Part([record], long=True)
            continue
        part.append(record)
        left -= size
    if part:
        yield Part(part)


def _place(size: int, record: StreamRecord, last: frozenset[str]) -> tuple[bool, bool, bool, int]:
    return size > _PART_BYTES, record.strand.bot in last, bool(record.updated), size


def _messages(reply: list[bytes] | ResponseError) -> list[Message]:
    """The messages of a transcript that are not late. Raises `BadData` if its key holds something else, or one cannot be read."""
    if not isinstance(reply, ResponseError):
        return [message for message in messages_of(reply) if not message.late]
    if _is_no_transcript(reply):
        raise BadData(str(reply))
    raise Unavailable(f"Redis gives out no transcript: {reply}") from reply


def _is_no_transcript(error: ResponseError) -> bool:
    """Whether the key holds something else; any other error is about Redis, and no reason to do without the transcript."""
    return str(error).startswith("WRONGTYPE")
