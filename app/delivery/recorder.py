"""Records attempts that have ended: what becomes of the delivery, and of its endpoint's health.

Owns the attempts between their end and their commit. Many are recorded in one transaction; a crash before the commit sends
those deliveries again, under the same ids, when their leases expire.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import outbox
from app.archive.endpoints import HEALTHY, EndpointHealth, lock_health, save_health
from app.archive.outbox import Claim, Settled
from app.delivery.retry import after_failure, after_success, next_attempt_at_ms
from app.delivery.sender import Delivered, Gone, SendOutcome, plain
from app.failpoints import failpoint
from app.failures import failure_of
from app.metrics import DELIVERIES

log = structlog.get_logger(__name__)

GONE_REASON = "the endpoint answered 410 Gone: it wants no more webhooks"


class Interrupted(Struct, frozen=True):
    """The worker stopped before the reply came. The receiver may have the webhook: another worker sends it again at once."""


class Attempt(Struct, frozen=True):
    """One attempt that has ended. Instants by the dispatcher's clock."""

    claim: Claim
    started_at_ms: int
    ended_at_ms: int
    outcome: SendOutcome | Interrupted


class Recorder:
    """Records attempts as they end, and calls `on_recorded` after each transaction."""

    def __init__(self, engine: AsyncEngine, *, jitter: Callable[[], float], on_recorded: Callable[[], Awaitable[None]]) -> None:
        self._engine = engine
        self._jitter = jitter
        self._on_recorded = on_recorded
        self._ended: list[Attempt] = []
        self._recording = asyncio.Lock()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def __len__(self) -> int:
        """Attempts that wait to be recorded."""
        return len(self._ended)

    @property
    def claims(self) -> list[Claim]:
        """The claims of these."""
        return [attempt.claim for attempt in self._ended]

    @property
    def busy(self) -> bool:
        return not self._idle.is_set()

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="record deliveries")

    def add(self, attempt: Attempt) -> None:
        self._ended.append(attempt)
        self._wake.set()
        if self._task is not None:
            self._idle.clear()

    async def run_once(self) -> None:
        """Record all that has ended. Raises SQLAlchemy's error, and then nothing was recorded: the next call tries again."""
        async with self._recording:
            attempts = list(self._ended)
            if attempts:
                await record(self._engine, attempts, jitter=self._jitter)
                failpoint("deliver.after_record")
                del self._ended[: len(attempts)]

    async def idle(self) -> None:
        await self._idle.wait()

    async def stop(self) -> None:
        """Record what has ended by now; attempts that cannot be recorded are sent again when their leases expire."""
        self._stopping = True
        self._wake.set()
        if self._task is not None:
            await self._task
        await self._drain()

    async def _run(self) -> None:
        while not self._stopping:
            await self._wake.wait()
            self._wake.clear()
            await self._drain()
            if not self._wake.is_set():
                self._idle.set()
        self._idle.set()

    async def _drain(self) -> None:
        """Record until nothing is left. On a failure the attempts stay, and the next tick records them."""
        try:
            while self._ended:
                await self.run_once()
                await self._on_recorded()
        except Exception as error:  # noqa: BLE001 - a task that ends here would record nothing more
            write = log.warning if failure_of(error) == "unreachable" else log.exception
            write("attempts not recorded", waiting=len(self._ended), error=str(error))


def settled(attempt: Attempt, *, jitter: float) -> Settled:
    """The next status of its delivery. `jitter` from 0 to 1, see `app.delivery.retry`."""
    claim, outcome = attempt.claim, attempt.outcome
    match outcome:
        case Delivered():
            return _settled(attempt, "delivered", replied=outcome.status, reply=outcome.reply)
        case Gone():
            return _settled(attempt, "failed", replied=outcome.status, reply=outcome.reply, error="answered 410 Gone")
        case Interrupted():
            # Due as before the claim, so at once, also if it was interrupted because the clock jumped.
            return _settled(
                attempt, "pending", next_at_ms=claim.claimed_at_ms, error="the worker stopped before the reply came", uncounted=1
            )
        case _:
            next_at_ms = next_attempt_at_ms(claim.tries, attempt.ended_at_ms, jitter=jitter, retry_after_s=outcome.retry_after_s)
            status = "failed" if next_at_ms is None else "pending"
            error = f"{outcome.reason}: {outcome.detail}"
            return _settled(attempt, status, next_at_ms=next_at_ms, replied=outcome.status, reply=outcome.reply, error=error)


def health_after(health: EndpointHealth, attempt: Attempt) -> EndpointHealth:
    """The endpoint's health after this attempt."""
    match attempt.outcome:
        case Delivered():
            return after_success()
        case Interrupted():
            return health
        case _:
            return after_failure(health, started_at_ms=attempt.started_at_ms, ended_at_ms=attempt.ended_at_ms)


async def record(engine: AsyncEngine, attempts: Sequence[Attempt], *, jitter: Callable[[], float]) -> None:
    """Record attempts in one transaction. Raises SQLAlchemy's error, and then nothing was recorded."""
    decided = [settled(attempt, jitter=jitter()) for attempt in attempts]
    async with engine.begin() as conn:
        effective = await outbox.settle(conn, decided)
        counted = [attempt for attempt in attempts if attempt.claim.id in effective]
        endpoints = sorted({attempt.claim.endpoint.endpoint_id for attempt in counted})
        before = await lock_health(conn, endpoints)
        after = dict(before)
        for attempt in counted:
            endpoint = attempt.claim.endpoint.endpoint_id
            after[endpoint] = health_after(after.get(endpoint, HEALTHY), attempt)
        await save_health(conn, {each: now for each, now in after.items() if now != before.get(each, HEALTHY)})
    # A crash here leaves the endpoint enabled: its next 410 disables it.
    await _disable_gone(engine, counted)
    _report(decided, counted)


async def _disable_gone(engine: AsyncEngine, attempts: Sequence[Attempt]) -> None:
    gone = {each.claim.endpoint.endpoint_id: each.ended_at_ms for each in attempts if isinstance(each.outcome, Gone)}
    for endpoint, at_ms in gone.items():
        async with engine.begin() as conn:
            await outbox.disable_endpoint(conn, endpoint, reason=GONE_REASON, now_ms=at_ms)
        log.warning("endpoint disabled", endpoint=endpoint, reason=GONE_REASON)


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


def _report(decided: Sequence[Settled], attempts: Sequence[Attempt]) -> None:
    given_up = {item.id for item in decided if item.status == "failed"}
    for attempt in attempts:
        DELIVERIES.labels(_label(attempt.outcome)).inc()
        if attempt.claim.id in given_up:
            log.warning("delivery failed", delivery=attempt.claim.id, bot=attempt.claim.bot, attempts=attempt.claim.attempt)


def _label(outcome: SendOutcome | Interrupted) -> str:
    match outcome:
        case Delivered():
            return "delivered"
        case Gone():
            return "gone"
        case Interrupted():
            return "interrupted"
        case _:
            return outcome.reason
