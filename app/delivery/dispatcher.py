"""Sends what is due in the outbox: claim, sign, POST, record.

    run_once ─> record what is over ─> claim as many as there are idle senders ─> one task each ─> POST
                     ▲                                                                             │
                     └───────────────── several at once, in one transaction ───────────────────────┘

Only what can be sent at once is claimed, so a lease runs for as long as one attempt and no more. Whatever ends makes room for
the next claim without waiting for a tick. A crash anywhere delays a delivery by one lease; it cannot lose it.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
from asyncpg import InterfaceError, PostgresError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import outbox
from app.archive.outbox import Claim, DueEndpoint
from app.clock import monotonic_ms
from app.delivery import breaker
from app.delivery.maintenance import OutboxMaintenance
from app.delivery.recorder import Attempt, Interrupted, record
from app.delivery.sender import Outcome, Sender, SignedWebhook, trusted_tls
from app.delivery.url_guard import Resolver
from app.errors import Unavailable
from app.failpoints import failpoint
from app.metrics import DELIVERY_DURATION, DELIVERY_LATENCY
from app.settings import Settings

log = structlog.get_logger(__name__)

# What one endpoint may have under way, as a part of what a worker can: five of them may hang and nobody else would notice.
SHARE_OF_ONE = 5
# How many endpoints are claimed for one by one at most, where a claim for all of them is refused.
ENDPOINTS_APART = 1_000

# While a connection is being made, asyncpg's own errors come through as they are.
_POSTGRES_AWAY = (SQLAlchemyError, PostgresError, InterfaceError, OSError, TimeoutError)

# SQLSTATE classes of a Postgres that answers, and says that what it was told is wrong: data, constraints, statements.
_REFUSALS = ("22", "23", "42")


class Dispatcher:
    """One worker's sending. `jitter` draws from 0 to 1."""

    def __init__(self, engine: AsyncEngine, settings: Settings, *, jitter: Callable[[], float] = random.random) -> None:
        self._engine = engine
        self._settings = settings
        self._jitter = jitter
        self._resolver = Resolver()
        self._tls = trusted_tls()
        self._idle: list[Sender] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._over: list[Attempt] = []
        self._settling: asyncio.Task[None] | None = None
        self._recording = asyncio.Lock()
        self._claiming = asyncio.Lock()
        self._chores = OutboxMaintenance(engine)
        self._ahead_ms = 0.0
        self._stopping = False

    async def run_once(self, now_ms: int) -> None:
        """One tick. Raises `Unavailable` while Postgres does not answer; what is under way goes on and is recorded later.

        Raises what SQLAlchemy raises if Postgres answers and refuses.
        """
        self._ahead_ms = now_ms - monotonic_ms()
        try:
            await self._record()
            await self._top_up()
            await self._chores.run_once(now_ms)
        except _POSTGRES_AWAY as error:
            if _is_refused(error):
                raise
            detail = f"Postgres does not answer, so nothing is delivered: {error}"
            raise Unavailable(detail) from error

    async def idle(self) -> None:
        """Wait until everything that was due has been sent and recorded, as far as Postgres answers."""
        while running := [task for task in (*self._under_way, self._settling) if task is not None and not task.done()]:
            await asyncio.wait(running)

    async def stop(self, grace_s: float) -> None:
        """Claim nothing more, let what is under way end within the grace, and hand the rest back to other workers at once."""
        self._stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                async with self._claiming:
                    pass  # a claim that was being made is one more to end or to hand back
                await self.idle()
        for task in self._under_way:
            task.cancel()
        await self.idle()
        await self._settle()
        for sender in self._idle:
            await sender.close()
        self._resolver.close()

    def _now_ms(self) -> int:
        """The tick's clock, carried on: attempts end between ticks."""
        return int(monotonic_ms() + self._ahead_ms)

    async def _top_up(self) -> None:
        """Claim and start until nobody is idle or nothing is due."""
        async with self._claiming:
            while (room := self._room()) and not self._stopping:
                claims = await self._claim(room)
                for claim in claims:
                    self._start(claim)
                if len(claims) < room:
                    return

    def _room(self) -> int:
        # What is over but not recorded counts: with Postgres away for long it must not pile up.
        return max(0, self._settings.delivery_concurrency - len(self._under_way) - len(self._over))

    async def _claim(self, room: int) -> list[Claim]:
        """In one statement for all endpoints. If Postgres refuses it, each endpoint apart: one row must not stop the others."""
        try:
            async with self._engine.begin() as conn:
                return await self._lease(conn, await self._lock_due(conn, room=room), room=room)
            # A crash here leaves them leased: they are due again when that ends.
        except DBAPIError as error:
            if not _is_refused(error):
                raise
        async with self._engine.begin() as conn:
            return await self._lease_apart(conn, room=room)

    async def _lease_apart(self, conn: AsyncConnection, *, room: int) -> list[Claim]:
        claims: list[Claim] = []
        # More endpoints than there is room for: those that are refused wait longest, and would always be the first.
        for due, width in await self._lock_due(conn, room=ENDPOINTS_APART):
            if len(claims) == room:
                break
            try:
                async with conn.begin_nested():
                    claims += await self._lease(conn, [(due, width)], room=room - len(claims))
            except DBAPIError as error:
                if not _is_refused(error):
                    raise
                log.error("endpoint_not_claimed", endpoint=due.endpoint_id, error=str(error.orig))  # noqa: TRY400
        return claims

    async def _lock_due(self, conn: AsyncConnection, *, room: int) -> list[tuple[DueEndpoint, int]]:
        full = max(1, self._settings.delivery_concurrency // SHARE_OF_ONE)
        due = await outbox.lock_due(conn, room=room, now_ms=self._now_ms())
        return [(each, breaker.width(each.failures, full=full)) for each in due]

    async def _lease(self, conn: AsyncConnection, endpoints: Sequence[tuple[DueEndpoint, int]], *, room: int) -> list[Claim]:
        if not endpoints:
            return []
        # It covers one attempt and what may come between: a slow commit, a busy machine.
        lease_ms = int(self._settings.delivery_timeout_s * 1000) + self._settings.delivery_lease_margin_ms
        return await outbox.lease(conn, endpoints, room=room, now_ms=self._now_ms(), lease_ms=lease_ms)

    def _start(self, claim: Claim) -> None:
        failpoint("deliver.after_claim")
        task = asyncio.create_task(self._deliver(claim), name=f"deliver {claim.id}")
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle(), name="settle deliveries")

    async def _deliver(self, claim: Claim) -> None:
        started_at_ms = self._now_ms()
        outcome: Outcome | Interrupted = Interrupted()
        try:
            # After a long sleep of the whole process the lease may be over, and another worker at it.
            if started_at_ms < claim.leased_until_ms and not self._stopping:
                _observe_latency(claim, started_at_ms=started_at_ms)
                outcome = await self._send(claim, now_ms=started_at_ms)
        finally:
            self._over.append(Attempt(claim, started_at_ms, self._now_ms(), outcome))

    async def _send(self, claim: Claim, *, now_ms: int) -> Outcome:
        sender = self._idle.pop() if self._idle else self._new_sender()
        try:
            started_ms = monotonic_ms()
            failpoint("deliver.before_post")
            letter = SignedWebhook(
                claim.id, claim.endpoint.url, claim.body, claim.endpoint.secrets, claim.endpoint.private_allowed
            )
            outcome = await sender.send(letter, now_ms=now_ms)
            failpoint("deliver.after_post")
            DELIVERY_DURATION.observe((monotonic_ms() - started_ms) / 1000)
            return outcome
        finally:
            self._idle.append(sender)

    def _new_sender(self) -> Sender:
        return Sender(
            resolver=self._resolver,
            tls=self._tls,
            allow_private=self._settings.private_webhooks_allowed,
            deadline_s=self._settings.delivery_timeout_s,
            reply_max_bytes=self._settings.delivery_reply_max_bytes,
        )

    async def _settle(self) -> None:
        """Record what is over, and fill the room that it left. What fails here is done again at the next tick."""
        try:
            while self._over:
                await self._record()
                await self._top_up()
        except _POSTGRES_AWAY as error:
            tell = log.exception if _is_refused(error) else log.warning
            tell("deliveries_not_recorded", waiting=len(self._over), error=str(error))

    async def _record(self) -> None:
        async with self._recording:
            # A crash before this is committed sends them again, under the same ids, when their leases end.
            attempts = list(self._over)
            if attempts:
                await record(self._engine, attempts, jitter=self._jitter)
                failpoint("deliver.after_record")
                del self._over[: len(attempts)]


def _observe_latency(claim: Claim, *, started_at_ms: int) -> None:
    if claim.attempt == 1 and not claim.endpoint.sandbox:
        DELIVERY_LATENCY.observe(max(0, started_at_ms - claim.event_at_ms) / 1000)


def _is_refused(error: BaseException) -> bool:
    """Whether this is a Postgres that answers: trying again will not help, and saying that it is away would mislead."""
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return isinstance(state, str) and state.startswith(_REFUSALS)
