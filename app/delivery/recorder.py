"""Decides what becomes of a delivery after an attempt, and records many such decisions in one transaction."""

from collections.abc import Callable, Sequence

import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import endpoint_health, outbox
from app.archive.endpoint_health import HEALTHY, Health
from app.archive.outbox import Claim, Settled
from app.delivery import breaker
from app.delivery.replies import plain
from app.delivery.retry import next_attempt_at_ms
from app.delivery.sender import Delivered, Gone, Outcome
from app.metrics import DELIVERIES

log = structlog.get_logger(__name__)

GONE_REASON = "the endpoint answered 410 Gone: it wants no more webhooks"


class Interrupted(Struct, frozen=True):
    """The worker stopped before an answer came. The receiver may have it or not: it is sent again, at once, by another."""


class Attempt(Struct, frozen=True):
    """One attempt that is over. Instants by the dispatcher's clock."""

    claim: Claim
    started_at_ms: int
    ended_at_ms: int
    outcome: Outcome | Interrupted


def settled(attempt: Attempt, *, jitter: float) -> Settled:
    """What becomes of its delivery. `jitter` from 0 to 1, see `app.delivery.retry`."""
    claim, outcome = attempt.claim, attempt.outcome
    match outcome:
        case Delivered():
            return _settled(attempt, "delivered", replied=outcome.status, reply=outcome.reply)
        case Gone():
            return _settled(attempt, "failed", replied=outcome.status, reply=outcome.reply, error="answered 410 Gone")
        case Interrupted():
            # Due as it was when it was claimed, so at once, even if it was interrupted because the clock jumped.
            return _settled(
                attempt, "pending", next_at_ms=claim.claimed_at_ms, error="the worker stopped before an answer came", uncounted=1
            )
        case _:
            next_at_ms = next_attempt_at_ms(claim.tries, attempt.ended_at_ms, jitter=jitter, retry_after_s=outcome.retry_after_s)
            status = "failed" if next_at_ms is None else "pending"
            error = f"{outcome.reason}: {outcome.detail}"
            return _settled(attempt, status, next_at_ms=next_at_ms, replied=outcome.status, reply=outcome.reply, error=error)


def health_after(health: Health, attempt: Attempt) -> Health:
    """How the endpoint looks after this attempt."""
    match attempt.outcome:
        case Delivered():
            return breaker.after_success()
        case Interrupted():
            return health
        case _:
            return breaker.after_failure(health, started_at_ms=attempt.started_at_ms, ended_at_ms=attempt.ended_at_ms)


async def record(engine: AsyncEngine, attempts: Sequence[Attempt], *, jitter: Callable[[], float]) -> None:
    """Record attempts that are over. Raises what SQLAlchemy raises, and then nothing was recorded: do it again."""
    decided = [settled(attempt, jitter=jitter()) for attempt in attempts]
    async with engine.begin() as conn:
        effective = await outbox.settle(conn, decided)
        counted = [attempt for attempt in attempts if attempt.claim.id in effective]
        endpoints = sorted({attempt.claim.endpoint.endpoint_id for attempt in counted})
        before = await endpoint_health.read(conn, endpoints)
        after = dict(before)
        for attempt in counted:
            endpoint = attempt.claim.endpoint.endpoint_id
            after[endpoint] = health_after(after.get(endpoint, HEALTHY), attempt)
        await endpoint_health.save(conn, {each: now for each, now in after.items() if now != before.get(each, HEALTHY)})
    # A crash here leaves an endpoint enabled that wants nothing more: its next 410 comes here again.
    await _disable_gone(engine, counted)
    _tell(decided, counted)


async def _disable_gone(engine: AsyncEngine, attempts: Sequence[Attempt]) -> None:
    gone = {each.claim.endpoint.endpoint_id: each.ended_at_ms for each in attempts if isinstance(each.outcome, Gone)}
    for endpoint, at_ms in gone.items():
        async with engine.begin() as conn:
            await outbox.disable_endpoint(conn, endpoint, reason=GONE_REASON, now_ms=at_ms)
        log.warning("endpoint_disabled", endpoint=endpoint, reason=GONE_REASON)


def _settled(
    attempt: Attempt,
    status: str,
    *,
    next_at_ms: int | None = None,
    replied: int | None = None,
    reply: str | None = None,
    error: str | None = None,
    uncounted: int = 0,
) -> Settled:
    return Settled(
        id=attempt.claim.id,
        attempt=attempt.claim.attempt,
        status=status,
        started_at_ms=attempt.started_at_ms,
        duration_ms=max(0, attempt.ended_at_ms - attempt.started_at_ms),
        next_attempt_at_ms=next_at_ms,
        replied=replied,
        error=plain(error) if error is not None else None,
        reply=reply,
        uncounted=uncounted,
    )


def _tell(decided: Sequence[Settled], attempts: Sequence[Attempt]) -> None:
    given_up = {item.id for item in decided if item.status == "failed"}
    for attempt in attempts:
        DELIVERIES.labels(_label(attempt.outcome)).inc()
        if attempt.claim.id in given_up:
            log.warning("delivery_failed", delivery=attempt.claim.id, bot=attempt.claim.bot, attempts=attempt.claim.attempt)


def _label(outcome: Outcome | Interrupted) -> str:
    match outcome:
        case Delivered():
            return "delivered"
        case Gone():
            return "gone"
        case Interrupted():
            return "interrupted"
        case _:
            return outcome.reason
