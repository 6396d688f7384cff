"""Webhook endpoints: create, list, read, change, delete. What is sent to them: `app.api.routes.deliveries`."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from sqlalchemy import Row

from app.api.auth import Administering, Principal
from app.api.dependencies import ResourcesDep
from app.api.routes.bots import found_bot
from app.api.saving import saving
from app.api.schemas.endpoints import EndpointChange, EndpointCreated, Endpoints, EndpointView, NewEndpoint
from app.api.schemas.problems import PROBLEMS
from app.archive import bots, endpoints
from app.delivery.url_guard import check_destination
from app.errors import Conflict, NotFound
from app.ids import new_id, new_webhook_secret
from app.resources import Resources

router = APIRouter(prefix="/v1", tags=["webhooks"], responses=PROBLEMS)

MOST = 20


@router.post("/bots/{bot}/endpoints", status_code=201)
async def create_endpoint(
    bot: str, new: NewEndpoint, resources: ResourcesDep, principal: Administering, *, response: Response
) -> EndpointCreated:
    """Add an endpoint. Its secret, by which webhooks are verified, is in this answer and in no other."""
    await _check_url(resources, principal, new.url)
    endpoint = new_id(resources.clock.now_ms())
    async with saving(resources, principal) as change:
        found_bot(await bots.find(change.conn, bot), bot)
        if len(await endpoints.of_bot(change.conn, bot)) >= MOST:
            raise Conflict(f"a bot has at most {MOST} endpoints", hint="delete one that is no longer needed")
        row = await endpoints.create(
            change.conn,
            endpoint,
            bot,
            url=new.url,
            private_allowed=_may_name_private(principal),
            events=list(new.events),
            secret=new_webhook_secret(),
        )
        await change.record("endpoint.created", endpoint, bot=bot, url=new.url, events=new.events)
    response.headers["Location"] = f"/v1/endpoints/{endpoint}"
    return EndpointCreated.with_secret(row)


@router.get("/bots/{bot}/endpoints")
async def list_endpoints(bot: str, resources: ResourcesDep, _: Administering) -> Endpoints:
    """A bot's endpoints."""
    async with resources.engine.connect() as conn:
        found_bot(await bots.find(conn, bot), bot)
        rows = await endpoints.of_bot(conn, bot)
    return Endpoints(endpoints=[EndpointView.of(row) for row in rows])


@router.get("/endpoints/{endpoint_id}")
async def read_endpoint(endpoint_id: str, resources: ResourcesDep, principal: Administering) -> EndpointView:
    """One endpoint."""
    known_id = _id(endpoint_id)
    async with resources.engine.connect() as conn:
        return EndpointView.of(_covered(principal, await endpoints.find(conn, known_id), endpoint_id))


@router.patch("/endpoints/{endpoint_id}")
async def change_endpoint(
    endpoint_id: str, wanted: EndpointChange, resources: ResourcesDep, principal: Administering
) -> EndpointView:
    """Change where it is, what it hears of, and whether it does. What is pending for it goes to the new place."""
    known_id = _id(endpoint_id)
    if wanted.url is not None:
        async with resources.engine.connect() as conn:
            _covered(principal, await endpoints.find(conn, known_id), endpoint_id)
        await _check_url(resources, principal, wanted.url)
    changes = wanted.model_dump(exclude_none=True)
    async with saving(resources, principal) as change:
        row = _covered(principal, await endpoints.find(change.conn, known_id), endpoint_id)
        more: dict[str, Any] = {"disabled_reason": None} if wanted.enabled else {}
        if wanted.url is not None:
            more["private_allowed"] = _may_name_private(principal)
        row = await endpoints.change(change.conn, known_id, changes | more)
        await change.record("endpoint.changed", known_id, bot=row.bot_id, **changes)
    return EndpointView.of(row)


@router.delete("/endpoints/{endpoint_id}", status_code=204)
async def delete_endpoint(endpoint_id: str, resources: ResourcesDep, principal: Administering) -> None:
    """Delete an endpoint: nothing more is sent to it, and what is pending for it is cancelled."""
    known_id = _id(endpoint_id)
    async with saving(resources, principal) as change:
        row = _covered(principal, await endpoints.find(change.conn, known_id), endpoint_id)
        await endpoints.delete(change.conn, known_id)
        await change.record("endpoint.deleted", known_id, bot=row.bot_id)


async def _check_url(resources: Resources, principal: Principal, url: str) -> None:
    allowed = resources.settings.private_webhooks_allowed
    await check_destination(url, allow_private=allowed if _may_name_private(principal) else False)


def _may_name_private(principal: Principal) -> bool:
    """Receivers' replies are shown: a tenant's admin must not read with them what is inside the operator's network."""
    return principal.key.bots is None


def _covered(principal: Principal, row: Row[Any] | None, endpoint: str) -> Row[Any]:
    """An endpoint that exists and is of a bot that the key covers: the two are not to be told apart."""
    if row is None or not principal.covers(row.bot_id):
        raise _no_endpoint(endpoint)
    return row


def _id(endpoint: str) -> str:
    """What is no id is the id of nothing."""
    try:
        return str(UUID(endpoint))
    except ValueError:
        raise _no_endpoint(endpoint) from None


def _no_endpoint(endpoint: str) -> NotFound:
    return NotFound(f"there is no endpoint {endpoint[:64]!r}")
