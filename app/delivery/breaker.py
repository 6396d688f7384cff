"""When to leave an endpoint alone: after failures in a row its deliveries wait, then one at a time is let through to try.

Pure. A breaker is closed (`resume_at_ms` None), open until `resume_at_ms`, and from then on it lets one delivery through: its
success closes it, its failure opens it for twice as long. What was under way when it opened says nothing new and is not counted.
"""

from app.archive.endpoint_health import HEALTHY, Health

FAILURES_TO_OPEN = 5
FIRST_PAUSE_MS = 15_000
LONGEST_PAUSE_MS = 300_000


def after_success() -> Health:
    """Anything that arrived shows that the endpoint is there again."""
    return HEALTHY


def after_failure(health: Health, *, started_at_ms: int, ended_at_ms: int) -> Health:
    """`started_at_ms` and `ended_at_ms` of the attempt that failed."""
    if health.opened_at_ms is not None and started_at_ms < health.opened_at_ms:
        return health
    failures = health.failures + 1
    if failures < FAILURES_TO_OPEN:
        return Health(failures)
    return Health(failures, ended_at_ms, ended_at_ms + pause_ms(failures))


def pause_ms(failures: int) -> int:
    """How long the breaker stays open after that many failures in a row."""
    doublings = min(failures - FAILURES_TO_OPEN, LONGEST_PAUSE_MS.bit_length())
    return min(FIRST_PAUSE_MS << doublings, LONGEST_PAUSE_MS)


def width(failures: int, *, full: int) -> int:
    """How many deliveries an endpoint may have under way: half as many with each failure in a row, one while it is tried."""
    return max(1, full >> failures) if failures < FAILURES_TO_OPEN else 1
