"""When a webhook that failed is tried again: quickly at first, then ever more rarely, for about three days.

Pure: the caller says what time it is and draws the jitter.
"""

_SECOND_MS = 1_000
_MINUTE_MS = 60 * _SECOND_MS
_HOUR_MS = 60 * _MINUTE_MS

# The wait after the first, second, … failed attempt: 75.7 h in all.
DELAYS_MS = (
    5 * _SECOND_MS,
    30 * _SECOND_MS,
    2 * _MINUTE_MS,
    10 * _MINUTE_MS,
    30 * _MINUTE_MS,
    1 * _HOUR_MS,
    2 * _HOUR_MS,
    4 * _HOUR_MS,
    8 * _HOUR_MS,
    12 * _HOUR_MS,
    24 * _HOUR_MS,
    24 * _HOUR_MS,
)
JITTER = 0.2
LONGEST_RETRY_AFTER_S = 24 * 60 * 60


def next_attempt_at_ms(attempt: int, now_ms: int, *, jitter: float, retry_after_s: int | None = None) -> int | None:
    """The instant of the attempt after the failed `attempt` (1, 2, …); None: give up.

    `jitter` from 0 to 1 lengthens the wait by up to a fifth, so that a receiver that comes back is not met by all at once.
    `retry_after_s` is what the receiver asked for: never sooner than that, up to a day.
    """
    if attempt > len(DELAYS_MS):
        return None
    wait_ms = DELAYS_MS[attempt - 1] * (1 + JITTER * jitter)
    asked_ms = min(retry_after_s or 0, LONGEST_RETRY_AFTER_S) * _SECOND_MS
    return now_ms + max(int(wait_ms), asked_ms)
