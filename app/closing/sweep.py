"""Wakes the strands that are due: the ledger decides what that means and commits it.

Many workers may sweep at once: a compare-and-set that is lost changes nothing. A sandbox bot's strands are due in its own
time; moving its clock and sweeping are the same call for it.
"""

import asyncio
from collections.abc import Awaitable, Sequence

from app.domain.records import Wake
from app.domain.strand import Strand
from app.failpoints import failpoint
from app.live.due import due
from app.live.fold import Outcome
from app.live.ledger import Ledger
from app.live.pipe import Pipe


class Sweep:
    """The sweep of all shards. `batch` is how many strands of a shard one round takes."""

    def __init__(self, *, pipe: Pipe, ledger: Ledger, shards: int, batch: int) -> None:
        self._pipe = pipe
        self._ledger = ledger
        self._shards = shards
        self._batch = batch

    async def run_once(self, now_ms: int, *, shards: Sequence[int] | None = None) -> int:
        """Wake everything that is due at `now_ms`, in all shards or in these; returns how many strands were woken."""
        return await self._rounds(now_ms, bot=None, shards=shards)

    async def run_bot(self, bot: str, now_ms: int, *, shards: Sequence[int] | None = None) -> int:
        """The same for a sandbox bot whose clock stands at `now_ms`."""
        return await self._rounds(now_ms, bot=bot, shards=shards)

    async def run_round(self, now_ms: int, *, bot: str | None = None, shards: Sequence[int] | None = None) -> int:
        """One round: of each of these shards, or of all, no more than a batch."""
        looked_at = range(self._shards) if shards is None else shards
        strands = await due(self._pipe, shards=looked_at, now_ms=now_ms, bot=bot, limit=self._batch)
        if strands:
            failpoint("sweep.after_read")
            await _all(self._wake(strands, at_ms=now_ms if bot else None))
            failpoint("sweep.after_commit")
        return len(strands)

    async def _rounds(self, now_ms: int, *, bot: str | None, shards: Sequence[int] | None) -> int:
        """Rounds until nothing is due: what one wakes may be due again before `now_ms` (a reminder, then the close)."""
        woken = 0
        while more := await self.run_round(now_ms, bot=bot, shards=shards):
            woken += more
        return woken

    def _wake(self, strands: Sequence[Strand], *, at_ms: int | None) -> list[Awaitable[Outcome]]:
        return [self._ledger.submit(strand, Wake(), at_ms=at_ms) for strand in strands]


async def _all(outcomes: Sequence[Awaitable[Outcome]]) -> None:
    """Wait for all, then raise what the first of those that failed raised."""
    results = await asyncio.gather(*outcomes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
