"""The deliveries in flight: a bounded group of tasks, each with an HTTP client of its own while it sends.

Owns the tasks and the clients. Every claim that is started ends as one `Attempt`, also if its task is cancelled.
"""

import asyncio
from collections.abc import Callable

from app.archive.outbox import Claim
from app.clock import monotonic_ms
from app.delivery.recorder import Attempt, Interrupted
from app.delivery.sender import Sender, SendOutcome, SignedWebhook, trusted_tls
from app.delivery.url_guard import Resolver
from app.failpoints import failpoint
from app.metrics import DELIVERY_DURATION, DELIVERY_LATENCY
from app.settings import Settings


class SendingTasks:
    """At most `delivery_concurrency` sends at once; `on_attempt` gets each attempt as it ends."""

    def __init__(self, settings: Settings, *, now_ms: Callable[[], int], on_attempt: Callable[[Attempt], None]) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._on_attempt = on_attempt
        self._resolver = Resolver()
        self._tls = trusted_tls()
        self._idle_senders: list[Sender] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, claim: Claim) -> None:
        failpoint("deliver.after_claim")
        task = asyncio.create_task(self._deliver(claim), name=f"deliver {claim.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

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
