"""Keeps the outbox tidy: what will never be sent is ended, what is long over is deleted, and how much waits is measured."""

from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import outbox_maintenance
from app.delivery.retry import DELAYS_MS
from app.domain.instants import DAY_MS
from app.metrics import OUTBOX

EVERY_MS = 5_000
PRUNE_EVERY_MS = 600_000
ROOM = 1_000
# As long as one delivery is tried, and a day for attempts and breakers in between.
GIVE_UP_AFTER_MS = sum(DELAYS_MS) + DAY_MS
# Failed ones stay longer: somebody may still want to replay them.
KEPT_MS = {("delivered", "cancelled"): 30 * DAY_MS, ("failed",): 90 * DAY_MS}


class OutboxMaintenance:
    """Done every few seconds by every worker; two at once do no harm."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._next_ms = 0
        self._next_prune_ms = 0

    async def run_once(self, now_ms: int) -> None:
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + EVERY_MS
        await self._all(partial(outbox_maintenance.cancel_unwanted, room=ROOM, now_ms=now_ms))
        await self._all(partial(outbox_maintenance.expire, queued_before_ms=now_ms - GIVE_UP_AFTER_MS, room=ROOM, now_ms=now_ms))
        async with self._engine.connect() as conn:
            OUTBOX.set(await outbox_maintenance.depth(conn))
        if now_ms >= self._next_prune_ms:
            self._next_prune_ms = now_ms + PRUNE_EVERY_MS
            await self._prune(now_ms)

    async def _prune(self, now_ms: int) -> None:
        for statuses, kept_ms in KEPT_MS.items():
            await self._all(partial(outbox_maintenance.prune, statuses=statuses, created_before_ms=now_ms - kept_ms, room=ROOM))

    async def _all(self, portion: Callable[[AsyncConnection], Awaitable[int]]) -> None:
        """In portions, each a transaction of its own: a long one would hold up everybody else's clearing."""
        done = ROOM
        while done == ROOM:
            async with self._engine.begin() as conn:
                done = await portion(conn)
