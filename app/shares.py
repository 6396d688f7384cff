"""Shares of a process: room that several owners (keys, bots) want at once, of which none may take all.

One owner may hold `most_of_one`, so that another finds room at once however busy the first is. Where all room is held, owners
wait, and the one that holds least gets what is given back first.

The event loop is shared as well: of work that takes long without an await, some goes on in each iteration, owner by owner. So is
what waits for another system (`OwnerQueues`): the next one that goes is of another owner.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Sequence
from contextvars import ContextVar
from typing import Generic, TypeVar

from app.errors import Unavailable

Item = TypeVar("Item")

OWNER: ContextVar[str | None] = ContextVar("owner", default=None)
"""The owner of the present task: the key of a request. None: the process itself, which has no share."""


class Shares:
    """Room that owners hold and give back; units are the caller's (connections, bytes, requests)."""

    def __init__(self, room: int, *, most_of_one: int) -> None:
        self._free = room
        self._most_of_one = most_of_one
        self._held: Counter[str] = Counter()
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    def try_take(self, owner: str, units: int = 1) -> bool:
        """Hold some more, if there is room and it is within the owner's share."""
        if units > self._free or self._held[owner] + units > self._most_of_one:
            return False
        self._free -= units
        self._held[owner] += units
        return True

    async def take(self, owner: str, *, wait_s: float) -> None:
        """Hold one more; raises `Unavailable` if there is no room in time."""
        if self.try_take(owner):
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting.append((owner, given))
        try:
            async with asyncio.timeout(wait_s):
                await given
        except BaseException as error:
            if given.done() and not given.cancelled():
                self.give_back(owner)  # it was given in the moment in which the wait ended
            self._waiting = deque(each for each in self._waiting if each[1] is not given)
            if isinstance(error, TimeoutError):
                raise Unavailable("too many queries are under way", hint="send fewer at once", retry_after_s=1) from error
            raise

    def give_back(self, owner: str, units: int = 1) -> None:
        """Give back what was held; it goes to the owner that waits and holds least."""
        self._free += units
        self._held[owner] -= units
        if not self._held[owner]:
            del self._held[owner]
        while self._waiting:
            at = min(range(len(self._waiting)), key=lambda each: self._held[self._waiting[each][0]])
            waiting, given = self._waiting[at]
            if given.done():
                del self._waiting[at]
            elif self.try_take(waiting):
                del self._waiting[at]
                given.set_result(None)
            else:
                return


class LoopShares:
    """At most `each` tasks go on in an iteration of the event loop, or in `every` few; others wait, and owners alternate.

    A loop runs all that is ready before it reads sockets again: 400 requests that arrive at once, of 1 ms each, would delay the
    next one by 400 ms.
    """

    def __init__(self, each: int, *, every: int = 1) -> None:
        self._each = each
        self._left = each
        self._every = every
        self._skipped = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._scheduled = False

    async def wait(self, owner: str) -> None:
        """Go on in this iteration, or in the first later one that has room for this owner."""
        loop = asyncio.get_running_loop()
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next, loop)
        if self._left and not self._waiting:
            self._left -= 1
            return
        given = loop.create_future()
        self._waiting.setdefault(owner, deque()).append(given)
        await given

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._skipped = (self._skipped + 1) % self._every
        if self._skipped:
            loop.call_soon(self._next, loop)
            return
        self._left = self._each
        while self._left and self._waiting:
            owner = next(iter(self._waiting))
            queue = self._waiting.pop(owner)
            given = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind the others
            if not given.done():
                given.set_result(None)
                self._left -= 1
        self._scheduled = self._left < self._each
        if self._scheduled:
            loop.call_soon(self._next, loop)


class OwnerQueues(Generic[Item]):
    """A queue for each owner that has something waiting; each is served in order, and owners by turns."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def append(self, owner: str, item: Item) -> None:
        queue = self._queues.get(owner)
        if queue is None:
            self._queues[owner] = queue = deque()
        queue.append(item)

    def put_back(self, owner: str, items: Sequence[Item]) -> None:
        """Put items in front of all that wait of this owner, which goes behind other owners if nothing of it waited."""
        queue = self._queues.get(owner)
        if queue is not None:
            queue.extendleft(reversed(items))
        elif items:
            self._queues[owner] = deque(items)

    def owners(self, *, but: Collection[str] = ()) -> list[str]:
        """The owners that wait, but for these, in the order in which to serve them."""
        return [owner for owner in self._queues if owner not in but]

    def have(self, count: int, *, but: Collection[str] = ()) -> bool:
        """Whether at least so many items wait, without those of the owners `but`."""
        return sum(len(queue) for owner, queue in self._queues.items() if owner not in but) >= count

    def of(self, owner: str) -> deque[Item]:
        """The queue of an owner that waits. The caller that takes from it calls `served` after it."""
        return self._queues[owner]

    def served(self, owner: str) -> None:
        """Move this owner behind the others."""
        queue = self._queues.pop(owner)
        if queue:
            self._queues[owner] = queue
