"""Events of live sessions as server-sent events: one reader of the feed for all clients of a process.

It reads only while it has clients. Each client has a position in the feed, so a slow one delays no other, and one that
reconnects, with any process, goes on after the last event that it got: none is lost and none is sent twice. A position that the
feed no longer holds is answered with the event `reset`: the client loads the list of open sessions anew. The caller decides what
a client may see and when it must end. With many clients it reads less often, so that entries of the same process do not wait.
"""

import asyncio
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import structlog
from msgspec import Struct, json, structs

from app.clock import monotonic_ms
from app.domain.instants import rfc3339, rfc3339_or_none
from app.domain.session_view import shown_as
from app.errors import RateLimited, Unavailable
from app.live.feed import FEED_KEPT_MS, FeedReader, PlacedEvent, Position
from app.live.pipe import Pipe

log = structlog.get_logger(__name__)

_PAUSE_S = 0.2
_PAUSE_A_CLIENT_S = 0.005  # each reading is sent to each client, which takes a fiftieth of this
_LONGEST_PAUSE_S = 3.0
_RETRY_S = 1.0
_LONGEST_WAIT_S = 1.0
_PING_MS = 10_000
_AHEAD_MS = 10_000
_MOST_FRAMES = 50_000

ID_PATTERN = "-".join(["([0-9]{1,19})"] * 4)
_ID = re.compile(ID_PATTERN)
_OPENING = b"retry: 2000\nid: %b\n\n"
_RESET = b"id: %b\nevent: reset\ndata: {}\n\n"
_PING = b": ping\nid: %b\n\n"

Covers = Callable[[str], bool]


class _Frame(Struct, frozen=True, gc=False):
    position: Position
    bot: str
    text: bytes


class _Frames:
    """The frames of the last two minutes, in the order in which they were read. Frame n is the n-th since it was begun."""

    def __init__(self, start: Position) -> None:
        self.start = start  # every event after this position is here
        self.end = start  # up to this position everything was read
        self._kept: list[_Frame] = []
        self.first = 0  # frames before this one are dropped

    def __len__(self) -> int:
        return self.first + len(self._kept)

    def add(self, frames: Iterable[_Frame], *, end: Position) -> None:
        self._kept += frames
        self.end = end
        oldest = (end[0] - FEED_KEPT_MS, 0, 0, 0)
        drop = max(bisect_right(self._kept, oldest, key=_position), len(self._kept) - _MOST_FRAMES)
        if drop > 0:
            self.start = self._kept[drop - 1].position
            self.first += drop
            del self._kept[:drop]

    def is_behind(self, position: Position) -> bool:
        """Whether a client got more from another process than this one has read: it will have in a moment."""
        return self.end < position and position[0] - self.end[0] < _AHEAD_MS

    def after(self, position: Position) -> int:
        """How many frames a client has that got everything up to this position; -1: some of the following are dropped."""
        if not self.start <= position or position[0] - self.end[0] >= _AHEAD_MS:
            return -1
        return self.first + bisect_right(self._kept, position, key=_position)

    def text(self, number: int, covers: Covers) -> bytes:
        """The frames from this number on, of the bots that `covers` names."""
        return b"".join([frame.text for frame in self._kept[number - self.first :] if covers(frame.bot)])


class LiveEvents:
    """The clients of one process and what they are sent."""

    def __init__(self, pipe: Pipe, *, shards: int, most: int) -> None:
        self._pipe = pipe
        self._shards = shards
        self._most = most
        self._of: Counter[str] = Counter()
        self._frames: _Frames | None = None
        self._changed: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self.clients = 0

    async def now(self) -> Position:
        """The position at this instant: every event after it is still to be sent."""
        reader = FeedReader(self._pipe, shards=self._shards)
        return await reader.now()

    def check_room(self, owner: str) -> None:
        """Raise `Unavailable` if there are as many clients as there may be, `RateLimited` if the owner has its part of them."""
        if self.clients >= self._most:
            raise Unavailable("too many clients follow the live events of this process", retry_after_s=5)
        if self._of[owner] >= self._most * 2 // 3:
            following = f"this key follows the live events {self._of[owner]} times already"
            raise RateLimited(following, hint="close some of them", retry_after_s=5)

    async def follow(
        self, after: Position | None, *, covers: Covers, goes_on: Callable[[], bool], owner: str = ""
    ) -> AsyncIterator[bytes]:
        """The events after a position (None: from now on) of the bots that `covers` names, until `goes_on` says no."""
        self.clients += 1
        self._of[owner] += 1
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="live events")
        try:
            async for piece in self._pieces(after, covers=covers, goes_on=goes_on):
                yield piece
        finally:
            self.clients -= 1
            self._of[owner] -= 1
            if not self._of[owner]:
                del self._of[owner]
            if self.clients == 0:
                await self.stop()

    async def stop(self) -> None:
        """End reading; the next client begins it again."""
        reading, self._reading = self._reading, None
        self._frames = None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _pieces(self, position: Position | None, *, covers: Covers, goes_on: Callable[[], bool]) -> AsyncIterator[bytes]:
        frames, number, sent_ms = None, 0, monotonic_ms()
        while goes_on():
            piece = b""
            if self._frames is not None and self._frames is not frames:  # the first, or read anew after a failure
                if position is not None and self._frames.is_behind(position):
                    await asyncio.sleep(_PAUSE_S)
                    continue
                first, frames = frames is None, self._frames
                position = frames.end if position is None else position
                number = frames.after(position)
                piece = _OPENING % id_of(position).encode() if first else b""
            if frames is not None and frames is self._frames:
                piece += frames.text(number, covers) if number >= frames.first else _RESET % id_of(frames.end).encode()
                number, position = len(frames), frames.end
                # The position moves on also where nothing happens, so that the feed still holds it after a reconnect.
                if not piece and monotonic_ms() - sent_ms > _PING_MS:
                    piece = _PING % id_of(position).encode()
            if piece:
                sent_ms = monotonic_ms()
                yield piece
            else:
                await self._change()

    async def _change(self) -> None:
        """Wait for the next reading, but not long: a client must notice its end."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=_LONGEST_WAIT_S)

    async def _read(self) -> None:
        """Keep up with the feed until `stop`. After a failure it is read from its start: positions stay what they are."""
        while self._reading is not None:  # a cancellation can end the call to Redis alone
            try:
                await self._read_until_late()
            except Unavailable as error:
                log.warning("live events are not read, Redis is unreachable", error=str(error))
                await asyncio.sleep(_RETRY_S)
            except Exception:
                log.exception("live events are not read")
                await asyncio.sleep(_RETRY_S)

    async def _read_until_late(self) -> None:
        """Returns when so much time has passed between two readings that records may have been trimmed unread."""
        reader = FeedReader(self._pipe, shards=self._shards)
        frames = _Frames(await reader.start())
        while self._reading is not None:
            before_ms = reader.end[0]
            placed = await reader.read()
            if before_ms and reader.end[0] - before_ms > FEED_KEPT_MS / 2:
                return
            frames.add(map(_frame, placed), end=reader.end)
            if placed or self._frames is not frames:
                self._frames = frames
                self._notify()
            await asyncio.sleep(pause_s(self.clients))

    def _notify(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)


def pause_s(clients: int) -> float:
    """The time between two readings, in s: the more clients, the later all of them get an event."""
    return min(_PAUSE_S + clients * _PAUSE_A_CLIENT_S, _LONGEST_PAUSE_S)


def id_of(position: Position) -> str:
    """A position as the id of an event."""
    return "-".join(map(str, position))


def position_of(text: str) -> Position | None:
    """The position that an id names; None for text that is no id."""
    parts = _ID.fullmatch(text)
    return None if parts is None else (int(parts[1]), int(parts[2]), int(parts[3]), int(parts[4]))


def _position(frame: _Frame) -> Position:
    return frame.position


def _frame(placed: PlacedEvent) -> _Frame:
    data = {"id": id_of(placed.position)} | event_view(placed)
    text = f"id: {data['id']}\nevent: {placed.event.type}\ndata: {json.encode(data).decode()}\n\n"
    return _Frame(placed.position, placed.strand.bot, text.encode())


def event_view(placed: PlacedEvent) -> dict[str, Any]:
    """An event as JSON."""
    strand, event = placed.strand, structs.asdict(placed.event)
    instants = {shown_as(name): rfc3339_or_none(value) for name, value in event.items() if shown_as(name) != name}
    return {
        "type": event.pop("type"),
        "at": rfc3339(event.pop("at_ms")),
        "bot": strand.bot,
        "conversation_id": strand.conversation,
        "thread": strand.thread or None,
        **{name: value for name, value in event.items() if shown_as(name) == name},
        **instants,
    }
