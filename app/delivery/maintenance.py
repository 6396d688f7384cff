"""Maintains the outbox: ends deliveries that will never be sent, deletes old ones, measures how many are pending."""

from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import outbox
from app.delivery.retry import DELAYS_MS
from app.domain.instants import DAY_MS
from app.metrics import OUTBOX

EVERY_MS = 5_000
PRUNE_EVERY_MS = 600_000
ROOM = 1_000
# The whole retry schedule, and a day for the attempts themselves and for breakers in between.
GIVE_UP_AFTER_MS = sum(DELAYS_MS) + DAY_MS
# Failed deliveries are kept longer, since an admin may replay them.
KEPT_MS = {("delivered", "cancelled"): 30 * DAY_MS, ("failed",): 90 * DAY_MS}


class OutboxMaintenance:
    """Run every few seconds by every worker; two workers at once do no harm."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._next_ms = 0
        self._next_prune_ms = 0

    async def run_once(self, now_ms: int) -> None:
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + EVERY_MS
        await self._all(partial(outbox.cancel_unwanted, room=ROOM, now_ms=now_ms))
        await self._all(partial(outbox.expire, queued_before_ms=now_ms - GIVE_UP_AFTER_MS, room=ROOM, now_ms=now_ms))
        async with self._engine.connect() as conn:
            OUTBOX.set(await outbox.depth(conn))
        if now_ms >= self._next_prune_ms:
            self._next_prune_ms = now_ms + PRUNE_EVERY_MS
            await self._prune(now_ms)

    async def _prune(self, now_ms: int) -> None:
        for statuses, kept_ms in KEPT_MS.items():
            await self._all(partial(outbox.prune, statuses=statuses, created_before_ms=now_ms - kept_ms, room=ROOM))

    async def _all(self, batch: Callable[[AsyncConnection], Awaitable[int]]) -> None:
        """In batches, each a transaction of its own: a long one would block the others' maintenance."""
        done = ROOM
        while done == ROOM:
            async with self._engine.begin() as conn:
                done = await batch(conn)
