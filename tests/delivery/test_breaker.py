"""A breaker opens after failures in a row, tries one at a time, and closes at the first success."""

import pytest

from app.archive.endpoint_health import HEALTHY, Health
from app.delivery.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE_MS,
    LONGEST_PAUSE_MS,
    after_failure,
    after_success,
    pause_ms,
    width,
)


def failing(times: int, *, health: Health = HEALTHY, at_ms: int = 1_000) -> Health:
    for _ in range(times):
        health = after_failure(health, started_at_ms=at_ms, ended_at_ms=at_ms)
    return health


def test_it_stays_closed_for_a_few_failures() -> None:
    """One bad minute does not stop an endpoint."""
    assert failing(FAILURES_TO_OPEN - 1) == Health(FAILURES_TO_OPEN - 1)


def test_it_opens_at_the_fifth_failure_in_a_row() -> None:
    """From then on its deliveries wait."""
    assert failing(FAILURES_TO_OPEN) == Health(5, 1_000, 1_000 + FIRST_PAUSE_MS)


def test_what_was_under_way_when_it_opened_is_not_counted() -> None:
    """Ten requests that hang for the same reason are no ten reasons."""
    opened = failing(FAILURES_TO_OPEN, at_ms=16_000)

    assert after_failure(opened, started_at_ms=1_000, ended_at_ms=16_001) == opened


def test_each_failed_try_doubles_the_pause_up_to_a_limit() -> None:
    """A dead endpoint costs ever less, and is found alive again within minutes."""
    opened = failing(FAILURES_TO_OPEN)
    again = after_failure(opened, started_at_ms=20_000, ended_at_ms=20_500)

    assert again == Health(6, 20_500, 20_500 + 2 * FIRST_PAUSE_MS)
    assert pause_ms(10_000) == LONGEST_PAUSE_MS


def test_a_success_forgets_everything() -> None:
    """Whoever answers is well."""
    assert after_success() == HEALTHY


@pytest.mark.parametrize(("failures", "wide"), ((0, 10), (1, 5), (2, 2), (3, 1), (4, 1), (5, 1), (99, 1)))
def test_an_endpoint_that_fails_gets_less_room(failures: int, wide: int) -> None:
    """Full width when well, half with each failure, one at a time while the breaker tries."""
    assert width(failures, full=10) == wide


def test_a_wide_endpoint_is_tried_one_at_a_time_all_the_same() -> None:
    """However many a worker sends at once, a try is one."""
    assert width(FAILURES_TO_OPEN, full=1_000) == 1
