"""The feed: what happened to sessions in the last two minutes, in one order over all shards, for clients that follow it.

A commit writes it together with all else, so it has every event of a live session, whether an endpoint subscribes to it or not.
It has no consumers and is trimmed by time: a reader that falls behind learns that by `FeedReader.start`. A continuation, which
the archivist makes, is not in it.
"""

from collections.abc import Sequence

from msgspec import Struct, msgpack

from app.domain.records import Event, EventType, Outcome, Reason
from app.domain.strand import Strand
from app.live import keys
from app.live.codec import encode
from app.live.pipe import Pipe

FEED_KEPT_MS = 120_000
_A_READ = 1_000

Position = tuple[int, int, int, int]
"""Place of an event in the order of all shards: its record's instant and sequence in Redis, shard, and number in the record."""


class FeedEvent(Struct, frozen=True, gc=False, array_like=True):
    """An event as the feed has it."""

    type: EventType  # what happened
    at_ms: int  # the instant, in the bot's own time
    session_id: str  # the session
    user_id: str  # its user
    channel: str  # its channel
    opened_at_ms: int  # when it opened
    closes_at_ms: int | None  # when it closes if nothing more comes; None: it is closed
    closed_at_ms: int | None  # when it closed; None: it is open
    reason: Reason | None  # why it closed
    outcome: Outcome | None  # how it came out
    interactive: bool  # whether the user took part


class FeedRecord(Struct, frozen=True, gc=False, array_like=True):
    """The events of a strand that one commit made."""

    bot: str  # the strand, in its three parts
    conversation: str  # its second part
    thread: str  # its third part
    events: tuple[FeedEvent, ...]  # in the order in which they happened


class PlacedEvent(Struct, frozen=True, gc=False):
    """An event of the feed, where it stands and whose it is."""

    position: Position
    strand: Strand
    event: FeedEvent


_decode = msgpack.Decoder(FeedRecord).decode


async def forget_user(pipe: Pipe, *, shards: int, bot: str, user: str) -> None:
    """Delete the records of a user: in a shard where nothing happens they would stay."""
    replies = await pipe.call_all([("XRANGE", keys.feed(shard), "-", "+") for shard in range(shards)])
    for shard, reply in enumerate(replies):
        ids = [entry for entry, fields in reply if user.encode() in fields[1] and _is_of(_decode(fields[1]), bot, user)]
        if ids:
            await pipe.call("XDEL", keys.feed(shard), *ids)


def _is_of(record: FeedRecord, bot: str, user: str) -> bool:
    return record.bot == bot and any(event.user_id == user for event in record.events)


def feed_record(strand: Strand, events: Sequence[Event]) -> bytes:
    """The record of a commit's events."""
    return encode(FeedRecord(strand.bot, strand.conversation, strand.thread, tuple(map(_feed_event, events))))


class FeedReader:
    """Reads the feed of all shards from its start on, in order.

    A shard's stream is in the order of Redis's time. An event is given once Redis's time has passed its instant: then no shard
    can still get an earlier one. So any position names the same place for every reader, and a client may go on from it with
    another process. After Redis's clock was set back, events are given at once; a client that reconnects before the clock has
    caught up may miss some of that time.
    """

    def __init__(self, pipe: Pipe, *, shards: int) -> None:
        self._pipe = pipe
        self._read_to: list[bytes] = [b"0"] * shards
        self._waiting: list[PlacedEvent] = []
        self._passed_ms = 0

    @property
    def end(self) -> Position:
        """The position up to which everything was read."""
        return self._passed_ms, 0, 0, 0

    async def start(self) -> Position:
        """The position from which on nothing is missing: older records may be trimmed."""
        return max(0, (await self.now())[0] - FEED_KEPT_MS), 0, 0, 0

    async def now(self) -> Position:
        """The position before everything that happens from now on."""
        return await self._time_ms(), 0, 0, 0

    async def read(self) -> list[PlacedEvent]:
        """All events that followed; none if nothing happened."""
        time_ms = await self._time_ms()
        while await self._read_more():
            pass
        self._waiting.sort(key=lambda placed: placed.position)
        went_back = time_ms < self._passed_ms
        given = [placed for placed in self._waiting if went_back or placed.position[0] < time_ms]
        self._waiting = self._waiting[len(given) :]
        self._passed_ms = time_ms
        return given

    async def _read_more(self) -> bool:
        """Read a portion of each shard; whether more may be there."""
        reads = [("XREAD", "COUNT", _A_READ, "STREAMS", keys.feed(shard), after) for shard, after in enumerate(self._read_to)]
        more = False
        for shard, reply in enumerate(await self._pipe.call_all(reads)):
            entries = reply[0][1] if isinstance(reply, list) and reply else []
            for entry, (_, raw) in entries:
                self._waiting += _placed(shard, entry, raw)
            if entries:
                self._read_to[shard] = entries[-1][0]
            more = more or len(entries) == _A_READ
        return more

    async def _time_ms(self) -> int:
        seconds, micros = await self._pipe.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def _feed_event(event: Event) -> FeedEvent:
    session = event.session
    return FeedEvent(
        type=event.type,
        at_ms=event.at_ms,
        session_id=session.id,
        user_id=session.user_id,
        channel=session.channel,
        opened_at_ms=session.opened_at_ms,
        closes_at_ms=None if session.closed_at_ms is not None else session.deadline_at_ms,
        closed_at_ms=session.closed_at_ms,
        reason=session.reason,
        outcome=session.outcome,
        interactive=session.interactive,
    )


def _placed(shard: int, entry: bytes, raw: bytes) -> list[PlacedEvent]:
    at_ms, sequence = map(int, entry.split(b"-"))
    record = _decode(raw)
    strand = Strand(record.bot, record.conversation, record.thread)
    return [PlacedEvent((at_ms, sequence, shard, index), strand, event) for index, event in enumerate(record.events, 1)]
