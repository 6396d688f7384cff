"""What became of webhooks, and doing something about it: lists, attempts, replays, tests, new secrets.

A key that covers some bots sees their deliveries and endpoints alone; others are answered as if they did not exist.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from sqlalchemy import Row

from app.api.auth import Administering, Principal
from app.api.schemas.deliveries import (
    DeliveryDetail,
    DeliveryPage,
    DeliveryQuery,
    DeliveryView,
    NewSecret,
    Replayed,
    ReplayMany,
    RotateSecret,
    TestResult,
)
from app.archive import audit, delivery_log, endpoints
from app.archive.audit import Actor
from app.archive.delivery_log import Place, Wanted
from app.archive.instants import instant
from app.archive.outbox import valid_secrets
from app.delivery.trial import send_trial
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict, Fault, Invalid, NotFound
from app.ids import new_webhook_secret
from app.resources import Resources

router = APIRouter(prefix="/v1", tags=["webhooks"])

REPLAY_ROOM = 5_000


@router.get("/deliveries")
async def list_deliveries(request: Request, principal: Administering, asked: Annotated[DeliveryQuery, Query()]) -> DeliveryPage:
    """Deliveries, the newest first."""
    principal.require("admin", bot=asked.bot)
    wanted = Wanted(
        bots=principal.key.bots,
        bot=asked.bot,
        endpoint_id=_text(asked.endpoint),
        session_id=_text(asked.session),
        event=asked.event,
        status=asked.status,
        since_ms=None if asked.since is None else ms_of(asked.since),
    )
    async with _resources(request).engine.connect() as conn:
        rows = await delivery_log.page(conn, wanted, after=_place(asked.cursor), limit=asked.limit + 1)
    shown = rows[: asked.limit]
    return DeliveryPage(
        deliveries=[DeliveryView.of(row) for row in shown], next=_cursor(shown[-1]) if len(rows) > asked.limit else None
    )


@router.get("/deliveries/{delivery_id}")
async def read_delivery(request: Request, principal: Administering, delivery_id: UUID) -> DeliveryDetail:
    """One delivery with its payload and each of its attempts."""
    async with _resources(request).engine.connect() as conn:
        row = _seen(principal, await delivery_log.find(conn, str(delivery_id)), f"delivery {delivery_id}")
        return DeliveryDetail.with_history(row, await delivery_log.attempts_of(conn, str(delivery_id)))


@router.post("/deliveries/replay")
async def replay_deliveries(request: Request, principal: Administering, wanted: ReplayMany) -> Replayed:
    """Send all dead letters since an instant again, of an endpoint or of a bot; disabled endpoints are left out."""
    if wanted.endpoint_id is None and wanted.bot is None:
        fault = Fault("bot", "neither `bot` nor `endpoint_id` is given", "say whose deliveries to send again")
        raise Invalid("a replay is of one bot or one endpoint", faults=(fault,))
    principal.require("admin", bot=wanted.bot)
    resources = _resources(request)
    chosen = Wanted(bots=principal.key.bots, bot=wanted.bot, endpoint_id=_text(wanted.endpoint_id), since_ms=ms_of(wanted.since))
    bot = wanted.bot or await _bot_of(resources, principal, str(wanted.endpoint_id))
    replayed, done = 0, REPLAY_ROOM
    while done == REPLAY_ROOM:
        # In portions: one transaction over all would hold up the dispatcher, and be undone whole by a time-out.
        async with resources.engine.begin() as conn:
            done = await delivery_log.replay_failed(conn, chosen, room=REPLAY_ROOM, now_ms=resources.clock.now_ms())
            replayed += done
    async with resources.engine.begin() as conn:
        detail = {"since": rfc3339(ms_of(wanted.since)), "replayed": replayed}
        await audit.record(conn, _actor(principal), "deliveries.replayed", _text(wanted.endpoint_id) or bot, bot=bot, **detail)
    return Replayed(replayed=replayed)


@router.post("/deliveries/{delivery_id}/replay", status_code=202)
async def replay_delivery(request: Request, principal: Administering, delivery_id: UUID) -> DeliveryView:
    """Send a delivery again under its old id, whatever became of it; its retries start anew."""
    resources = _resources(request)
    async with resources.engine.begin() as conn:
        row = _seen(principal, await delivery_log.find(conn, str(delivery_id)), f"delivery {delivery_id}")
        endpoint = await endpoints.find(conn, row.endpoint_id)
        if endpoint is None or not endpoint.enabled:
            raise Conflict("its endpoint is disabled or deleted", hint="enable the endpoint, then replay")
        if not await delivery_log.replay(conn, str(delivery_id), now_ms=resources.clock.now_ms()):
            raise Conflict("it is pending already", hint="wait for its next attempt")
        await audit.record(conn, _actor(principal), "delivery.replayed", str(delivery_id), bot=row.bot_id)
        replayed = await delivery_log.find(conn, str(delivery_id))
    return DeliveryView.of(_seen(principal, replayed, f"delivery {delivery_id}"))


@router.post("/endpoints/{endpoint_id}/test")
async def test_endpoint(request: Request, principal: Administering, endpoint_id: UUID) -> TestResult:
    """Send the endpoint a signed `webhook.test` now, and tell what it answered."""
    resources = _resources(request)
    now_ms = resources.clock.now_ms()
    async with resources.engine.connect() as conn:
        endpoint = _seen(principal, await endpoints.find(conn, str(endpoint_id)), f"endpoint {endpoint_id}")
    # No connection is held while the receiver takes its time.
    trial = await send_trial(
        resources.settings,
        endpoint_id=str(endpoint_id),
        bot=endpoint.bot_id,
        url=endpoint.url,
        secrets=valid_secrets(endpoint, now_ms=now_ms),
        now_ms=now_ms,
    )
    async with resources.engine.begin() as conn:
        await delivery_log.keep_trial(conn, trial)
    return TestResult.of(trial)


@router.post("/endpoints/{endpoint_id}/rotate-secret")
async def rotate_secret(
    request: Request, principal: Administering, endpoint_id: UUID, rotate: RotateSecret | None = None
) -> NewSecret:
    """Sign with a new secret from now on, and with the present one beside it for a while."""
    resources = _resources(request)
    now_ms = resources.clock.now_ms()
    until_ms = now_ms + (rotate or RotateSecret()).previous_valid_s * 1000
    secret = new_webhook_secret()
    async with resources.engine.begin() as conn:
        endpoint = _seen(principal, await endpoints.find(conn, str(endpoint_id)), f"endpoint {endpoint_id}")
        changes = {"secret": secret, "previous_secret": endpoint.secret, "previous_secret_expires_at": instant(until_ms)}
        await endpoints.change(conn, str(endpoint_id), changes)
        await audit.record(
            conn,
            _actor(principal),
            "endpoint.secret_rotated",
            str(endpoint_id),
            bot=endpoint.bot_id,
            previous_valid_until=rfc3339(until_ms),
        )
    return NewSecret(secret=secret, previous_valid_until=rfc3339(until_ms))


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


async def _bot_of(resources: Resources, principal: Principal, endpoint_id: str) -> str:
    async with resources.engine.connect() as conn:
        endpoint = _seen(principal, await endpoints.find(conn, endpoint_id), f"endpoint {endpoint_id}")
        return str(endpoint.bot_id)


def _seen(principal: Principal, row: Row[Any] | None, name: str) -> Row[Any]:
    """A row that exists and is of a bot that the key covers: the two are not to be told apart."""
    if row is None or not principal.covers(row.bot_id):
        raise NotFound(f"there is no {name}")
    return row


def _actor(principal: Principal) -> Actor:
    return Actor(principal.key.name, principal.key.id)


def _text(value: UUID | None) -> str | None:
    return None if value is None else str(value)


def _cursor(row: Row[Any]) -> str:
    return urlsafe_b64encode(f"{row.created_at.isoformat()}|{row.id}".encode()).decode().rstrip("=")


def _place(cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    try:
        at, _, row_id = urlsafe_b64decode(cursor + "==").decode().partition("|")
        return Place(datetime.fromisoformat(at), str(UUID(row_id)))
    except ValueError as error:
        fault = Fault("cursor", "is not a cursor of this list", "take `next` of the page before, unchanged")
        raise Invalid("the cursor is not valid", faults=(fault,)) from error
