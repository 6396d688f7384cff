"""A breaker opens after failures in a row, lets one delivery through when half-open, and closes at the first success."""

import pytest

from app.archive.endpoints import HEALTHY, EndpointHealth
from app.delivery.retry import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_MS,
    LONGEST_PAUSE_MS,
    after_failure,
    after_success,
    max_in_flight,
    pause_ms,
)


def failing(times: int, *, health: EndpointHealth = HEALTHY, at_ms: int = 1_000) -> EndpointHealth:
    for _ in range(times):
        health = after_failure(health, started_at_ms=at_ms, ended_at_ms=at_ms)
    return health


def test_it_stays_closed_for_a_few_failures() -> None:
    """One bad minute does not stop an endpoint."""
    assert failing(FAILURES_TO_OPEN - 1) == EndpointHealth(FAILURES_TO_OPEN - 1)


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    """Its deliveries wait from that instant."""
    assert failing(FAILURES_TO_OPEN) == EndpointHealth(5, 1_000, 1_000 + FIRST_PAUSE_MS)


def test_what_was_under_way_when_it_opened_is_not_counted() -> None:
    """Requests that began before the breaker opened fail for the same reason, and are not counted again."""
    opened = failing(FAILURES_TO_OPEN, at_ms=16_000)

    assert after_failure(opened, started_at_ms=1_000, ended_at_ms=16_001) == opened


def test_each_failed_probe_doubles_the_pause_up_to_a_limit() -> None:
    """A dead endpoint is tried ever more rarely, and at least every five minutes."""
    opened = failing(FAILURES_TO_OPEN)
    again = after_failure(opened, started_at_ms=20_000, ended_at_ms=20_500)

    assert again == EndpointHealth(6, 20_500, 20_500 + 2 * FIRST_PAUSE_MS)
    assert pause_ms(10_000) == LONGEST_PAUSE_MS


def test_a_success_resets_the_count() -> None:
    """One success closes the breaker."""
    assert after_success() == HEALTHY


@pytest.mark.parametrize(("failures", "limit"), ((0, 10), (1, 5), (2, 2), (3, 1), (4, 1), (5, 1), (99, 1)))
def test_an_endpoint_that_fails_gets_less_room(failures: int, limit: int) -> None:
    """The full limit while it succeeds, half with each failure, one at a time while the breaker is half-open."""
    assert max_in_flight(failures, limit=10) == limit


def test_a_half_open_breaker_lets_one_through_whatever_the_limit() -> None:
    """The number that a worker sends at once does not matter."""
    assert max_in_flight(FAILURES_TO_OPEN, limit=1_000) == 1
