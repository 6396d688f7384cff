"""When a webhook that failed is tried again."""

from datetime import timedelta

import pytest

from app.delivery import retry

DELAYS_S = (5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200, 86_400, 86_400)


@pytest.mark.parametrize(("attempt", "delay_s"), tuple(enumerate(DELAYS_S, start=1)))
def test_retry_schedule(attempt: int, delay_s: int) -> None:
    """Ever longer, by up to a fifth more."""
    assert retry.next_attempt_at_ms(attempt, 1_000, jitter=0) == 1_000 + delay_s * 1_000
    assert retry.next_attempt_at_ms(attempt, 1_000, jitter=1) == 1_000 + delay_s * 1_200
    assert retry.next_attempt_at_ms(attempt, 1_000, jitter=0.5) == 1_000 + delay_s * 1_100


def test_retry_gives_up_after_about_three_days() -> None:
    assert retry.next_attempt_at_ms(len(DELAYS_S) + 1, 0, jitter=0, retry_after_s=5) is None
    assert timedelta(days=3) < timedelta(seconds=sum(DELAYS_S)) < timedelta(days=3.5)


@pytest.mark.parametrize(
    ("asked_s", "waits_s"), ((None, 30), (0, 30), (-5, 30), (29, 30), (31, 31), (86_400, 86_400), (86_401, 86_400))
)
def test_retry_after_is_honoured_up_to_a_day(asked_s: int | None, waits_s: int) -> None:
    """Never sooner than asked, never sooner than planned."""
    assert retry.next_attempt_at_ms(2, 0, jitter=0, retry_after_s=asked_s) == waits_s * 1_000
