"""Sends what is due in the outbox: claim, sign, POST, record; and maintains the outbox.

    run_once ─> claim as many as there is room for ─> SendingTasks: one task each ─> POST
                          ▲                                                            │ Attempt
                          └───── Recorder: all that have ended, in one transaction <───┘

Only deliveries that can be sent at once are claimed, so a lease covers one attempt. Recorded attempts make room for the next
claim at once, without waiting for a tick. A crash at any step delays a delivery by one lease; it cannot lose it. Every claim
that is started ends as one `Attempt`, also if its task is cancelled.

Senders are in two parts. `delivery_concurrency` are for endpoints that are new, slow or failing: one endpoint may use a fifth
of them and one bot three quarters, since what waits for an answer cannot be taken back. `delivery_lent_concurrency` are lent to
endpoints that answer promptly, which give them back as fast: one may use most of them while no other waits, and what becomes free
goes to the bot and the endpoint that use least. So slow endpoints take nothing from prompt ones, however many they are.

`OutboxMaintenance` ends deliveries that will never be sent, deletes old ones and measures how many are pending.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from math import ceil

import structlog
from msgspec import structs
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import outbox
from app.archive.outbox import Claim, DueEndpoint, Room
from app.clock import monotonic_ms
from app.delivery import retry
from app.delivery.recorder import Attempt, Interrupted, Recorder
from app.delivery.retry import DELAYS_MS, PROMPT_MS, PromptEndpoints
from app.delivery.sender import Delivered, Sender, SendOutcome, SignedWebhook, trusted_tls
from app.delivery.url_guard import Resolver
from app.domain.instants import DAY_MS
from app.errors import Unavailable
from app.failpoints import failpoint
from app.failures import failure_of
from app.metrics import DELIVERY_DURATION, DELIVERY_LATENCY, OUTBOX
from app.settings import Settings

EVERY_MS = 5_000
PRUNE_EVERY_MS = 600_000
ROOM = 1_000
# The whole retry schedule, and a day for the attempts themselves and for breakers in between.
GIVE_UP_AFTER_MS = sum(DELAYS_MS) + DAY_MS
# Failed deliveries are kept longer, since an admin may replay them.
KEPT_MS = {("delivered", "cancelled"): 30 * DAY_MS, ("failed",): 90 * DAY_MS}


class OutboxMaintenance:
    """Run every few seconds by every worker; two workers at once do no harm. One worker at a time measures."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._next_ms = 0
        self._next_prune_ms = 0
        self.measures = True

    async def run_once(self, now_ms: int) -> None:
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + EVERY_MS
        await self._all(partial(outbox.cancel_unwanted, room=ROOM, now_ms=now_ms))
        await self._all(partial(outbox.expire, queued_before_ms=now_ms - GIVE_UP_AFTER_MS, room=ROOM, now_ms=now_ms))
        if self.measures:
            async with self._engine.connect() as conn:
                OUTBOX.set(await outbox.depth(conn))
        if now_ms >= self._next_prune_ms:
            self._next_prune_ms = now_ms + PRUNE_EVERY_MS
            await self._prune(now_ms)

    async def _prune(self, now_ms: int) -> None:
        for statuses, kept_ms in KEPT_MS.items():
            await self._all(partial(outbox.prune, statuses=statuses, created_before_ms=now_ms - kept_ms, room=ROOM))

    async def _all(self, batch: Callable[[AsyncConnection], Awaitable[int]]) -> None:
        """In batches, each a transaction of its own: a long one would block the others' maintenance."""
        done = ROOM
        while done == ROOM:
            async with self._engine.begin() as conn:
                done = await batch(conn)


class SendingTasks:
    """The sends under way; `on_attempt` gets each attempt as it ends."""

    def __init__(self, settings: Settings, *, now_ms: Callable[[], int], on_attempt: Callable[[Attempt], None]) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._on_attempt = on_attempt
        self._resolver = Resolver()
        self._tls = trusted_tls()
        self._idle_senders: list[Sender] = []
        self._tasks: dict[asyncio.Task[None], Claim] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def claims(self) -> list[Claim]:
        return list(self._tasks.values())

    def start(self, claim: Claim) -> None:
        failpoint("deliver.after_claim")
        task = asyncio.create_task(self._deliver(claim), name=f"deliver {claim.id}")
        self._tasks[task] = claim
        task.add_done_callback(self._tasks.pop)

    def begin_stop(self) -> None:
        """Tasks that have not begun to send end as interrupted; those that have may finish."""
        self._stopping = True

    async def join(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """Cancel the tasks that still run, wait for them, and close the clients."""
        self.begin_stop()
        for task in self._tasks:
            task.cancel()
        await self.join()
        for sender in self._idle_senders:
            await sender.close()
        self._resolver.close()

    async def _deliver(self, claim: Claim) -> None:
        started_at_ms = self._now_ms()
        outcome: SendOutcome | Interrupted = Interrupted()
        try:
            # If the whole process was paused the lease may have expired, and another worker may be sending.
            if started_at_ms < claim.leased_until_ms and not self._stopping:
                _observe_latency(claim, started_at_ms=started_at_ms)
                outcome = await self._send(claim, now_ms=started_at_ms)
        finally:
            self._on_attempt(Attempt(claim, started_at_ms, self._now_ms(), outcome))

    async def _send(self, claim: Claim, *, now_ms: int) -> SendOutcome:
        sender = self._idle_senders.pop() if self._idle_senders else self._new_sender()
        endpoint = claim.endpoint
        webhook = SignedWebhook(claim.id, endpoint.url, claim.body, endpoint.secrets, endpoint.private_allowed)
        try:
            started_ms = monotonic_ms()
            failpoint("deliver.before_post")
            outcome = await sender.send(webhook, now_ms=now_ms)
            failpoint("deliver.after_post")
            DELIVERY_DURATION.observe((monotonic_ms() - started_ms) / 1000)
            return outcome
        finally:
            self._idle_senders.append(sender)

    def _new_sender(self) -> Sender:
        return Sender.of(self._settings, resolver=self._resolver, tls=self._tls)


def _observe_latency(claim: Claim, *, started_at_ms: int) -> None:
    if claim.attempt == 1 and not claim.endpoint.sandbox:
        DELIVERY_LATENCY.observe(max(0, started_at_ms - claim.event_at_ms) / 1000)


log = structlog.get_logger(__name__)

# One endpoint may use this fraction (1/5) of a worker's concurrency: up to four may hang without delaying the others.
ENDPOINT_FRACTION = 5
# The endpoints of one bot may use three quarters of it.
BOT_SHARE = 0.75
# Of the senders lent to prompt endpoints one may use three quarters: the others are there at once for one that comes.
LENT_TO_ONE = 0.75
# Endpoints that are claimed for one by one, at most, if one statement for all of them is refused.
MAX_ENDPOINTS_ONE_BY_ONE = 1_000


class Dispatcher:
    """One worker's sending. `jitter` draws from 0 to 1."""

    def __init__(self, engine: AsyncEngine, settings: Settings, *, jitter: Callable[[], float] = random.random) -> None:
        self._engine = engine
        self._settings = settings
        self._recorder = Recorder(engine, jitter=jitter, on_recorded=self._top_up)
        self._sending = SendingTasks(settings, now_ms=self._now_ms, on_attempt=self._end)
        self._prompt = PromptEndpoints()
        self._maintenance = OutboxMaintenance(engine)
        self._claiming = asyncio.Lock()
        self._clock_offset_ms = 0.0
        self._stopping = False

    def measure(self, *, here: bool) -> None:
        """Whether this worker measures how many deliveries are pending; another one does if not, and this one reports none."""
        self._maintenance.measures = here
        if not here:
            OUTBOX.set(0)

    def start(self) -> None:
        """Record attempts as they end, and claim more, between ticks too."""
        self._recorder.start()

    async def run_once(self, now_ms: int) -> None:
        """One tick. Raises `Unavailable` while Postgres is down; sends in flight go on and are recorded later."""
        self._clock_offset_ms = now_ms - monotonic_ms()
        try:
            await self._recorder.run_once()
            await self._top_up()
            await self._maintenance.run_once(now_ms)
        except Exception as error:
            if failure_of(error) != "unreachable":
                raise
            detail = f"Postgres does not answer, so nothing is delivered: {error}"
            raise Unavailable(detail) from error

    async def idle(self) -> None:
        """Wait until everything that was due has been sent and recorded, as far as Postgres answers."""
        while self._sending or self._recorder.busy:
            await self._sending.join()
            await self._recorder.idle()

    async def stop(self, grace_s: float) -> None:
        """Claim nothing more, let sends in flight end within the grace, and release the others to other workers at once."""
        self._stopping = True
        self._sending.begin_stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                async with self._claiming:
                    pass  # a claim that is being made adds to what is in flight
                await self.idle()
        await self._sending.stop()
        await self._recorder.stop()

    def _now_ms(self) -> int:
        """The tick's clock, carried on: attempts end between ticks."""
        return int(monotonic_ms() + self._clock_offset_ms)

    def _end(self, attempt: Attempt) -> None:
        if not isinstance(attempt.outcome, Interrupted):
            duration_ms = attempt.ended_at_ms - attempt.started_at_ms
            delivered = isinstance(attempt.outcome, Delivered)
            self._prompt.count(attempt.claim.endpoint.endpoint_id, duration_ms, delivered=delivered)
        self._recorder.add(attempt)

    async def _top_up(self) -> None:
        """Claim and start until there is no room or nothing is due."""
        async with self._claiming:
            while not self._stopping:
                # Attempts that wait to be recorded take up room, so that they do not pile up while Postgres is down.
                under_way = [*self._sending.claims, *self._recorder.claims]
                room = self._room(under_way)
                claims = await self._claim(room, under_way) if room.prompt + room.others else []
                for claim in claims:
                    self._sending.start(claim)
                if len(claims) < room.prompt + room.others or not claims:
                    return

    def _room(self, under_way: Sequence[Claim]) -> Room:
        settings = self._settings
        lent = sum(claim.endpoint.prompt for claim in under_way)
        of_bots = _by_bot(under_way, prompt=False)
        waited_since_ms = self._now_ms() - PROMPT_MS
        waiting = {claim.endpoint.endpoint_id for claim in self._sending.claims if claim.claimed_at_ms < waited_since_ms}
        return Room(
            prompt=max(0, settings.delivery_lent_concurrency - lent),
            others=max(0, settings.delivery_concurrency - len(under_way) + lent),
            prompt_endpoints=self._prompt.prompt(waiting=waiting) if settings.delivery_lent_concurrency else (),
            full_bots=[bot for bot, busy in of_bots.items() if busy >= self._most_of_bot],
        )

    @property
    def _most_of_bot(self) -> int:
        return ceil(self._settings.delivery_concurrency * BOT_SHARE)

    async def _claim(self, room: Room, under_way: Sequence[Claim]) -> list[Claim]:
        """In one statement for all endpoints. If Postgres refuses it, one by one: one bad row must not stop the others."""
        try:
            async with self._engine.begin() as conn:
                return await self._lease(conn, await self._lock_due(conn, room), room, under_way)
            # A crash here leaves them leased: they are due again when the lease expires.
        except DBAPIError as error:
            if failure_of(error) == "unreachable":
                raise
        async with self._engine.begin() as conn:
            return await self._lease_one_by_one(conn, room, under_way)

    async def _lease_one_by_one(self, conn: AsyncConnection, room: Room, under_way: Sequence[Claim]) -> list[Claim]:
        claims: list[Claim] = []
        # More endpoints than there is room for: refused ones have waited longest and would always come first.
        many = structs.replace(room, prompt=MAX_ENDPOINTS_ONE_BY_ONE, others=MAX_ENDPOINTS_ONE_BY_ONE)
        for endpoint in await self._lock_due(conn, many):
            lent = sum(claim.endpoint.prompt for claim in claims)
            left = structs.replace(room, prompt=room.prompt - lent, others=room.others - len(claims) + lent)
            try:
                async with conn.begin_nested():
                    claims += await self._lease(conn, [endpoint], left, [*under_way, *claims])
            except DBAPIError as error:
                if failure_of(error) == "unreachable":
                    raise
                log.error("endpoint cannot be claimed", endpoint=endpoint.endpoint_id, error=str(error.orig))  # noqa: TRY400
        return claims

    async def _lock_due(self, conn: AsyncConnection, room: Room) -> list[DueEndpoint]:
        return await outbox.lock_due(conn, room=room, now_ms=self._now_ms())

    async def _lease(
        self, conn: AsyncConnection, due: Sequence[DueEndpoint], room: Room, under_way: Sequence[Claim]
    ) -> list[Claim]:
        """Claim of prompt endpoints what is lent to such, and of the others what is for all."""
        # It covers one attempt and a margin: a slow commit, a busy machine.
        lease_ms = int(self._settings.delivery_timeout_s * 1000) + self._settings.delivery_lease_margin_ms
        claims: list[Claim] = []
        for prompt, left in ((True, room.prompt), (False, room.others)):
            endpoints = [(each, self._max_in_flight(each)) for each in due if each.prompt is prompt]
            if left:
                claims += await outbox.lease(
                    conn,
                    endpoints,
                    room=left,
                    now_ms=self._now_ms(),
                    lease_ms=lease_ms,
                    busy=_by_bot(under_way, prompt=prompt),
                    of_bot=self._settings.delivery_lent_concurrency if prompt else self._most_of_bot,
                )
        return claims

    def _max_in_flight(self, endpoint: DueEndpoint) -> int:
        """How many deliveries an endpoint may have in flight."""
        limit = self._settings.delivery_concurrency // ENDPOINT_FRACTION
        if endpoint.prompt:
            limit = max(limit, int(self._settings.delivery_lent_concurrency * LENT_TO_ONE))
        return retry.max_in_flight(endpoint.failures, limit=max(1, limit))


def _by_bot(claims: Sequence[Claim], *, prompt: bool) -> Counter[str]:
    return Counter(claim.bot for claim in claims if claim.endpoint.prompt is prompt)
