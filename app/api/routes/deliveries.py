"""What became of webhooks, and doing something about it: lists, attempts, replays, tests, new secrets.

A key that covers some bots sees their deliveries and endpoints alone; others are answered as if they did not exist.
"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import Administering, Principal
from app.api.dependencies import ResourcesDep
from app.api.saving import saving
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
    id_or_none,
)
from app.api.schemas.problems import PROBLEMS
from app.archive import audit, delivery_log, endpoint_health, endpoints
from app.archive.audit import Actor
from app.archive.delivery_log import DeliveryFilter, DeliveryPlace
from app.archive.endpoint_health import HEALTHY
from app.archive.outbox import valid_secrets
from app.archive.tables import instant
from app.delivery.endpoint_test import send_test
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict, NotFound
from app.ids import new_webhook_secret
from app.queries.cursor import cursor_of, page_of, place_of
from app.resources import Resources

router = APIRouter(prefix="/v1", tags=["webhooks"], responses=PROBLEMS)

REPLAY_ROOM = 5_000


@router.get("/deliveries")
async def list_deliveries(
    resources: ResourcesDep, principal: Administering, asked: Annotated[DeliveryQuery, Query()]
) -> DeliveryPage:
    """Deliveries, the newest first."""
    principal.require("admin", bot=asked.bot)
    wanted = asked.wanted(principal.key.bots)
    of = ["deliveries", wanted]
    after = place_of(asked.cursor, of=of, kind=DeliveryPlace)
    async with resources.engine.connect() as conn:
        rows = await delivery_log.page(conn, wanted, after=after, limit=asked.limit + 1)
    shown, last = page_of(rows, limit=asked.limit)
    following = None if last is None else cursor_of(DeliveryPlace(last.created_at, last.id), of=of)
    return DeliveryPage(deliveries=[DeliveryView.of(row) for row in shown], next=following)


@router.get("/deliveries/{delivery_id}")
async def read_delivery(delivery_id: str, resources: ResourcesDep, principal: Administering) -> DeliveryDetail:
    """One delivery with its payload and each of its attempts."""
    async with resources.engine.connect() as conn:
        row = await _delivery(conn, principal, delivery_id)
        return DeliveryDetail.with_history(row, await delivery_log.attempts_of(conn, row.id))


@router.post("/deliveries/replay")
async def replay_deliveries(asked: ReplayMany, resources: ResourcesDep, principal: Administering) -> Replayed:
    """Send all dead letters since an instant again, of an endpoint or of a bot; disabled endpoints are left out."""
    principal.require("admin", bot=asked.bot)
    endpoint = id_or_none(asked.endpoint_id)
    bot = asked.bot or await _bot_of(resources, principal, str(endpoint))
    wanted = DeliveryFilter(bots=principal.key.bots, bot=bot, endpoint_id=endpoint, since_ms=ms_of(asked.since))
    replayed = await _replay_all(resources, wanted)
    detail = {"since": rfc3339(ms_of(asked.since)), "replayed": replayed}
    async with resources.engine.begin() as conn:
        await audit.record(conn, _actor(principal), "deliveries.replayed", endpoint or bot, bot=bot, **detail)
    return Replayed(replayed=replayed)


@router.post("/deliveries/{delivery_id}/replay", status_code=202)
async def replay_delivery(delivery_id: str, resources: ResourcesDep, principal: Administering) -> DeliveryView:
    """Send a delivery again under its old id, whatever became of it; its retries start anew."""
    async with resources.engine.begin() as conn:
        row = await _delivery(conn, principal, delivery_id)
        endpoint = await endpoints.find(conn, row.endpoint_id)
        if endpoint is None or not endpoint.enabled:
            raise Conflict("its endpoint is disabled or deleted", hint="enable the endpoint, then replay")
        if not await delivery_log.replay(conn, row.id, now_ms=resources.clock.now_ms()):
            raise Conflict("it is pending already", hint="wait for its next attempt")
        await audit.record(conn, _actor(principal), "delivery.replayed", row.id, bot=row.bot_id)
        return DeliveryView.of(await _delivery(conn, principal, delivery_id))


@router.post("/endpoints/{endpoint_id}/test")
async def test_endpoint(endpoint_id: str, resources: ResourcesDep, principal: Administering) -> TestResult:
    """Send the endpoint a signed `webhook.test` now, and tell what it answered. If it took it, what waited for it goes out."""
    now_ms = resources.clock.now_ms()
    async with resources.engine.connect() as conn:
        endpoint = await _endpoint(conn, principal, endpoint_id)
    # No connection is held while the receiver takes its time.
    test = await send_test(resources.settings, endpoint, now_ms=now_ms)
    async with resources.engine.begin() as conn:
        await delivery_log.insert_test(conn, test)
        if test.delivered:
            await endpoint_health.save(conn, {endpoint.id: HEALTHY})
    return TestResult.of(test)


@router.post("/endpoints/{endpoint_id}/rotate-secret")
async def rotate_secret(
    endpoint_id: str, resources: ResourcesDep, principal: Administering, rotate: RotateSecret | None = None
) -> NewSecret:
    """Sign with a new secret from now on, and with the present one beside it for a while.

    409 while the one before is still valid, as after an answer that was lost; with `force` that one ends at once.
    """
    wanted, secret, now_ms = rotate or RotateSecret(), new_webhook_secret(), resources.clock.now_ms()
    until_ms = now_ms + wanted.previous_valid_s * 1000
    async with saving(resources, principal) as change:
        endpoint = await _endpoint(change.conn, principal, endpoint_id)
        if not wanted.force:
            _check_previous_over(endpoint, now_ms=now_ms)
        changes = {"secret": secret, "previous_secret": endpoint.secret, "previous_secret_expires_at": instant(until_ms)}
        await endpoints.change(change.conn, endpoint.id, changes)
        await change.record("endpoint.secret_rotated", endpoint.id, bot=endpoint.bot_id, previous_valid_until=rfc3339(until_ms))
    return NewSecret(secret=secret, previous_valid_until=rfc3339(until_ms))


def _check_previous_over(endpoint: Row[Any], *, now_ms: int) -> None:
    """An endpoint has room for two secrets, and the older one was promised to somebody until it expires."""
    if len(valid_secrets(endpoint, now_ms=now_ms)) > 1:
        expires = rfc3339(ms_of(endpoint.previous_secret_expires_at))
        raise Conflict(
            f"its secret was rotated already, and the one before is valid until {expires}",
            hint='rotate again after that, or with `"force": true`, by which the one before ends at once',
        )


async def _replay_all(resources: Resources, wanted: DeliveryFilter) -> int:
    """In portions: one transaction over all would hold up the dispatcher, and be undone whole by a time-out."""
    replayed, done = 0, REPLAY_ROOM
    while done == REPLAY_ROOM:
        async with resources.engine.begin() as conn:
            done = await delivery_log.replay_failed(conn, wanted, room=REPLAY_ROOM, now_ms=resources.clock.now_ms())
        replayed += done
    return replayed


async def _bot_of(resources: Resources, principal: Principal, endpoint_id: str) -> str:
    async with resources.engine.connect() as conn:
        return str((await _endpoint(conn, principal, endpoint_id)).bot_id)


async def _delivery(conn: AsyncConnection, principal: Principal, delivery_id: str) -> Row[Any]:
    known_id = _id(delivery_id)
    row = known_id and await delivery_log.find(conn, known_id)
    return _covered(principal, row or None, f"delivery {delivery_id[:64]!r}")


async def _endpoint(conn: AsyncConnection, principal: Principal, endpoint_id: str) -> Row[Any]:
    known_id = _id(endpoint_id)
    row = known_id and await endpoints.find(conn, known_id)
    return _covered(principal, row or None, f"endpoint {endpoint_id[:64]!r}")


def _covered(principal: Principal, row: Row[Any] | None, name: str) -> Row[Any]:
    """What exists and is of a bot that the key covers: the two are not to be told apart."""
    if row is None or not principal.covers(row.bot_id):
        raise NotFound(f"there is no {name}")
    return row


def _id(text: str) -> str | None:
    """What is no id is the id of nothing."""
    try:
        return str(UUID(text))
    except ValueError:
        return None


def _actor(principal: Principal) -> Actor:
    return Actor(principal.key.name, principal.key.id)
