"""The status of a delivery after each kind of attempt, as a table."""

import pytest

from app.archive.endpoints import HEALTHY, EndpointHealth
from app.archive.outbox import Claim, DueEndpoint
from app.delivery.recorder import Attempt, Interrupted, health_after, settled
from app.delivery.retry import DELAYS_MS
from app.delivery.sender import Delivered, Gone, Retry, SendOutcome

ENDPOINT = DueEndpoint("endpoint", "http://example.com/", ("whsec_x",), sandbox=False, failures=0)
CLAIMED_MS, STARTED_MS, ENDED_MS = 999_990, 1_000_000, 1_000_250


def attempt(outcome: SendOutcome | Interrupted, *, tries: int = 1, number: int = 1) -> Attempt:
    claim = Claim(
        id="delivery",
        endpoint=ENDPOINT,
        bot="shop",
        event="session.closed",
        event_at_ms=0,
        body="{}",
        attempt=number,
        tries=tries,
        claimed_at_ms=CLAIMED_MS,
        leased_until_ms=2_000_000,
    )
    return Attempt(claim, STARTED_MS, ENDED_MS, outcome)


@pytest.mark.parametrize(
    ("outcome", "tries", "status", "next_at_ms"),
    (
        (Delivered(204), 1, "delivered", None),
        (Delivered(200), 13, "delivered", None),
        (Gone(), 1, "failed", None),
        (Retry("5xx", "answered 500", 500), 1, "pending", ENDED_MS + DELAYS_MS[0]),
        (Retry("connect", "refused"), 12, "pending", ENDED_MS + DELAYS_MS[11]),
        (Retry("timeout", "too slow"), 13, "failed", None),
        (Retry("4xx", "answered 429", 429, "", 60), 1, "pending", ENDED_MS + 60_000),
        (Retry("4xx", "answered 429", 429, "", 1), 2, "pending", ENDED_MS + DELAYS_MS[1]),
        (Retry("5xx", "answered 503", 503, "", 60), 13, "failed", None),
        (Interrupted(), 1, "pending", CLAIMED_MS),
        (Interrupted(), 13, "pending", CLAIMED_MS),
    ),
)
def test_the_next_status(outcome: SendOutcome | Interrupted, tries: int, status: str, next_at_ms: int | None) -> None:
    """Delivered, retried at its time, or failed after the thirteenth try that counts."""
    result = settled(attempt(outcome, tries=tries, number=tries), jitter=0.0)

    assert (result.status, result.next_attempt_at_ms) == (status, next_at_ms)
    assert (result.id, result.attempt) == ("delivery", tries)
    assert (result.started_at_ms, result.duration_ms) == (STARTED_MS, 250)


def test_jitter_spreads_what_failed_together() -> None:
    """A receiver that comes back is not met by all at once."""
    retry = attempt(Retry("connect", "refused"))
    soonest = settled(retry, jitter=0.0).next_attempt_at_ms
    latest = settled(retry, jitter=1.0).next_attempt_at_ms

    assert soonest is not None
    assert latest is not None
    assert latest - soonest == DELAYS_MS[0] // 5


def test_only_an_interrupted_attempt_is_not_counted() -> None:
    """Restarts of ours do not use up a receiver's chances."""
    assert settled(attempt(Interrupted()), jitter=0.0).uncounted == 1
    assert settled(attempt(Retry("5xx", "answered 500", 500)), jitter=0.0).uncounted == 0


def test_the_schedule_counts_tries_and_not_attempts() -> None:
    """After a replay the delays start from the first again, though attempts are numbered on."""
    result = settled(attempt(Retry("5xx", "answered 500", 500), tries=1, number=14), jitter=0.0)

    assert result.next_attempt_at_ms == ENDED_MS + DELAYS_MS[0]
    assert result.attempt == 14


@pytest.mark.parametrize(
    ("outcome", "before", "after"),
    (
        (Delivered(200), EndpointHealth(3), HEALTHY),
        (Retry("5xx", "answered 500", 500), EndpointHealth(1), EndpointHealth(2)),
        (Gone(), HEALTHY, EndpointHealth(1)),
        (Interrupted(), EndpointHealth(3), EndpointHealth(3)),
    ),
)
def test_what_it_says_of_the_endpoint(outcome: SendOutcome | Interrupted, before: EndpointHealth, after: EndpointHealth) -> None:
    """Success clears it, failure counts, and a stop of ours says nothing."""
    assert health_after(before, attempt(outcome)) == after
