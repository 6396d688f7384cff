"""The one clock: Redis `TIME`, followed by each process through an offset to its own monotonic clock.

No other module reads a clock; everywhere else `now_ms` is an argument.
"""

import time


def monotonic_ms() -> float:
    """This process's monotonic clock in ms; only differences have a meaning.

    It measures waits, deadlines and ages, which a change of the machine's clock must not move.
    """
    return time.monotonic() * 1000


def wall_ms() -> int:
    """The machine's own clock in ms since the epoch, for logs and for the time before Redis answers."""
    return time.time_ns() // 1_000_000


class Clock:
    """Redis's time as this process knows it.

    Every reply that carries Redis's time bounds the offset: the server read its clock after the request was sent
    and before the reply was received. The offset moves only when it falls outside those bounds. Before the first
    reply the machine's own clock stands in for Redis's; a process that decides by it is corrected by the commit, which
    refuses an instant that is too far off.
    """

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - monotonic_ms()

    def now_ms(self) -> int:
        """Redis's time in ms since the epoch, as far as this process knows; it can step back after a reply."""
        return int(monotonic_ms() + self._offset_ms)

    def observe(self, redis_ms: float, *, sent_ms: float, received_ms: float) -> None:
        """Adjust the offset by a reply: `redis_ms` since the epoch; `sent_ms` and `received_ms` on the monotonic clock."""
        lowest, highest = redis_ms - received_ms, redis_ms - sent_ms
        self._offset_ms = min(max(self._offset_ms, lowest), highest)
