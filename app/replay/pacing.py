"""When lines are posted: in batches as large as the API accepts, or at the pace of their `sent_at`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from app.clock import monotonic_ms
from app.replay.lines import EntryLine

BATCH_ENTRIES = 500
BATCH_BYTES = 1_000_000
_SOON_S = 0.005  # a line that is due within this time is due now: so short a sleep costs more than it waits


class Pace:
    """When a line is due: at `speed` times real time by `sent_at`, counted from the first; at once where `speed` is 0."""

    def __init__(self, speed: float, *, now_ms: Callable[[], float] = monotonic_ms) -> None:
        self._speed = speed
        self._now_ms = now_ms
        self._start: tuple[int, float] | None = None

    def wait_s(self, line: EntryLine) -> float:
        """How long until the line is due."""
        if not self._speed or line.sent_at_ms is None:
            return 0.0
        if self._start is None:
            self._start = line.sent_at_ms, self._now_ms()
        first_ms, began_ms = self._start
        due_ms = began_ms + (line.sent_at_ms - first_ms) / self._speed
        wait_s = (due_ms - self._now_ms()) / 1000
        return wait_s if wait_s > _SOON_S else 0.0


async def batches_of(lines: Iterable[EntryLine], *, most: int, pace: Pace) -> AsyncIterator[list[EntryLine]]:
    """Batches of up to `most` lines and 1 MB, each handed out before the first line that is not due yet."""
    batch: list[EntryLine] = []
    size = 0
    for line in lines:
        length = len(line.body) + 1
        if batch and (len(batch) == most or size + length > BATCH_BYTES or pace.wait_s(line)):
            yield batch
            batch, size = [], 0
        if wait_s := pace.wait_s(line):
            await asyncio.sleep(wait_s)
        batch.append(line)
        size += length
    if batch:
        yield batch
