"""When to send again, and how much at once: a delivery by its retry schedule, an endpoint by its circuit breaker and its answers.

Pure: the caller passes the time and the jitter. A delivery is retried quickly at first, then ever more rarely, for about three
days. A breaker is closed (`resume_at_ms` None), open until `resume_at_ms`, and half-open from then on: it lets one delivery
through, whose success closes it and whose failure opens it for twice as long.
"""

from collections.abc import Container

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


PROMPT_MS = 1_000
_NEWEST_SHARE = 0.2
_MOST_ENDPOINTS = 2_000


class PromptEndpoints:
    """Endpoints that answer promptly: the mean of the last answers took a second at most, and the last one was a success."""

    def __init__(self) -> None:
        self._mean_ms: dict[str, float] = {}

    def count(self, endpoint: str, duration_ms: int, *, delivered: bool) -> None:
        """Count an attempt that has ended. After a failure the endpoint is prompt again at its next success."""
        mean_ms = self._mean_ms.pop(endpoint, duration_ms)
        if not delivered:
            return
        if len(self._mean_ms) == _MOST_ENDPOINTS:
            del self._mean_ms[next(iter(self._mean_ms))]  # the one that has been idle for longest
        self._mean_ms[endpoint] = mean_ms + (duration_ms - mean_ms) * _NEWEST_SHARE

    def prompt(self, *, waiting: Container[str]) -> list[str]:
        """The endpoints that are prompt, without those that a send has been `waiting` for."""
        return [each for each, mean_ms in self._mean_ms.items() if mean_ms <= PROMPT_MS and each not in waiting]
