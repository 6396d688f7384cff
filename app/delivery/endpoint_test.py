"""Sends an endpoint a signed `webhook.test` at once, without the outbox, and returns what it answered."""

from typing import Any
from uuid import uuid4

from msgspec import json
from sqlalchemy import Row

from app.archive.deliveries import TestDelivery
from app.archive.outbox import valid_secrets
from app.clock import monotonic_ms
from app.delivery.sender import Delivered, Gone, Sender, SendOutcome, SignedWebhook, plain, trusted_tls
from app.delivery.url_guard import Resolver
from app.domain.instants import rfc3339
from app.settings import Settings

TEST_EVENT = "webhook.test"


async def send_test(settings: Settings, endpoint: Row[Any], *, now_ms: int) -> TestDelivery:
    """Send one test webhook; never raises for a receiver's behaviour. A 410 does not disable the endpoint."""
    body = _body(endpoint.id, endpoint.bot_id, now_ms=now_ms)
    secrets = valid_secrets(endpoint, now_ms=now_ms)
    webhook = SignedWebhook(str(uuid4()), endpoint.url, body, secrets, endpoint.private_allowed)
    resolver = Resolver(threads=1)
    sender = Sender.of(settings, resolver=resolver, tls=trusted_tls())
    started_ms = monotonic_ms()
    try:
        outcome = await sender.send(webhook, now_ms=now_ms)
    finally:
        await sender.close()
        resolver.close()
    return TestDelivery(
        id=webhook.id,
        endpoint_id=endpoint.id,
        bot=endpoint.bot_id,
        event=TEST_EVENT,
        body=webhook.body,
        at_ms=now_ms,
        duration_ms=round(monotonic_ms() - started_ms),
        delivered=isinstance(outcome, Delivered),
        replied=outcome.status,
        error=_error(outcome),
        reply=outcome.reply,
    )


def _body(endpoint_id: str, bot: str, *, now_ms: int) -> str:
    data = {"event_id": str(uuid4()), "bot": bot, "endpoint_id": endpoint_id}
    return json.encode({"type": TEST_EVENT, "timestamp": rfc3339(now_ms), "data": data}).decode()


def _error(outcome: SendOutcome) -> str | None:
    match outcome:
        case Delivered():
            return None
        case Gone():
            return "answered 410 Gone"
        case _:
            return plain(f"{outcome.reason}: {outcome.detail}")
