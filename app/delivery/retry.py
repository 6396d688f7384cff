"""When to send again: a delivery by its retry schedule, an endpoint by its circuit breaker.

Pure: the caller passes the time and the jitter. A delivery is retried quickly at first, then ever more rarely, for about three
days. A breaker is closed (`resume_at_ms` None), open until `resume_at_ms`, and half-open from then on: it lets one delivery
through, whose success closes it and whose failure opens it for twice as long.
"""

from app.archive.endpoints import HEALTHY, EndpointHealth
from app.domain.instants import HOUR_MS, MINUTE_MS

_SECOND_MS = 1_000

# The wait after the first, second, … failed attempt: 75.7 h in all.
DELAYS_MS = (
    5 * _SECOND_MS,
    30 * _SECOND_MS,
    2 * MINUTE_MS,
    10 * MINUTE_MS,
    30 * MINUTE_MS,
    1 * HOUR_MS,
    2 * HOUR_MS,
    4 * HOUR_MS,
    8 * HOUR_MS,
    12 * HOUR_MS,
    24 * HOUR_MS,
    24 * HOUR_MS,
)
JITTER = 0.2
LONGEST_RETRY_AFTER_S = 24 * 60 * 60

FAILURES_TO_OPEN = 5
FIRST_PAUSE_MS = 15_000
LONGEST_PAUSE_MS = 300_000


def next_attempt_at_ms(attempt: int, now_ms: int, *, jitter: float, retry_after_s: int | None = None) -> int | None:
    """The instant of the attempt after the failed `attempt` (1, 2, …); None: give up.

    `jitter` from 0 to 1 lengthens the wait by up to a fifth, so that deliveries that failed together are not retried together.
    `retry_after_s` is the receiver's `Retry-After`: the wait is never shorter than that, up to a day.
    """
    if attempt > len(DELAYS_MS):
        return None
    wait_ms = DELAYS_MS[attempt - 1] * (1 + JITTER * jitter)
    asked_ms = min(retry_after_s or 0, LONGEST_RETRY_AFTER_S) * _SECOND_MS
    return now_ms + max(int(wait_ms), asked_ms)


def after_success() -> EndpointHealth:
    """One success closes the breaker and resets the count of failures."""
    return HEALTHY


def after_failure(health: EndpointHealth, *, started_at_ms: int, ended_at_ms: int) -> EndpointHealth:
    """`started_at_ms` and `ended_at_ms` of the attempt that failed; one that began before the breaker opened is not counted."""
    if health.opened_at_ms is not None and started_at_ms < health.opened_at_ms:
        return health
    failures = health.failures + 1
    if failures < FAILURES_TO_OPEN:
        return EndpointHealth(failures)
    return EndpointHealth(failures, ended_at_ms, ended_at_ms + pause_ms(failures))


def pause_ms(failures: int) -> int:
    """How long the breaker stays open after that many failures in a row."""
    doublings = min(failures - FAILURES_TO_OPEN, LONGEST_PAUSE_MS.bit_length())
    return min(FIRST_PAUSE_MS << doublings, LONGEST_PAUSE_MS)


def max_in_flight(failures: int, *, limit: int) -> int:
    """Deliveries that an endpoint may have in flight: `limit`, halved by each failure in a row; one while half-open."""
    return max(1, limit >> failures) if failures < FAILURES_TO_OPEN else 1
