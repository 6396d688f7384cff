"""`adjourn replay`: a file of entries through the API, in its order, one batch at a time.

    file ── lines ──> paced batches ── poster ──> tally

It judges no entry: what the API refuses is counted and told with its line.
"""

from collections.abc import Callable, Iterable

from app.clock import monotonic_ms
from app.replay.lines import Line
from app.replay.pacing import BATCH_ENTRIES, Pace, batches_of
from app.replay.poster import Poster
from app.replay.tally import Tally


async def replay(
    lines: Iterable[Line],
    *,
    poster: Poster,
    speed: float = 0.0,
    most: int = BATCH_ENTRIES,
    told: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Post all lines, at `speed` times real time or (0) at once; `told` hears of each batch. Raises `ReplayStopped`."""
    tally = Tally()
    began_ms = monotonic_ms()
    async for batch in batches_of(lines, most=most, pace=Pace(speed)):
        for line, answer in zip(batch, await poster.post(batch), strict=True):
            tally.add(line, answer)
        tally.elapsed_s = (monotonic_ms() - began_ms) / 1000
        tally.retries = poster.retries
        told(tally)
    return tally
