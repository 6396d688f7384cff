"""Webhook endpoints: create, list, read, change, delete, test, rotate the secret. Deliveries: `app.api.routes.deliveries`."""

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.api.auth import AdminEngineDep, Administering, ChangingDep, ClockDep, Principal, SettingsDep, TestsDep, found, id_of
from app.api.fields import Body, BotPath, Instant, SlugText, UuidText
from app.api.paging import Next, Page, PageQuery
from app.api.responses import JsonResponse, answers, refuses
from app.api.routes.bots import bot_row
from app.archive import audit, deliveries, endpoints
from app.archive.deliveries import TestDelivery
from app.archive.endpoints import HEALTHY
from app.archive.outbox import valid_secrets
from app.archive.tables import instant
from app.delivery.endpoint_test import send_test
from app.delivery.secret_box import SecretBox
from app.delivery.url_guard import check_destination
from app.domain.instants import DAY_MS, ms_of, rfc3339
from app.domain.records import EventType
from app.errors import Conflict, RateLimited
from app.ids import new_id, new_webhook_secret
from app.ingest.limits import over_quota
from app.settings import Settings

router = APIRouter(prefix="/v1", tags=["webhooks"])

DEFAULT_EVENTS: tuple[EventType, ...] = ("session.reminder", "session.closure_message", "session.closed")
_DAY_S = DAY_MS // 1000

EndpointPath = Annotated[str, Path(description="Id of the endpoint.", json_schema_extra={"format": "uuid"})]


def _each_once(events: list[EventType]) -> list[EventType]:
    return [event for event in get_args(EventType) if event in events]


_Url = Annotated[str, Field(max_length=2048, pattern=r"^[Hh][Tt][Tt][Pp][Ss]?://[^\x00-\x20\x7f]+$")]
_ABOUT_URL = Field(description="Where webhooks are sent by POST.", examples=["https://example.com/webhooks"])
_Events = Annotated[
    list[EventType],
    Field(min_length=1, max_length=20),
    AfterValidator(_each_once),
]
_ABOUT_EVENTS = Field(description="The events that are sent to it.", examples=[["session.closed"]])
_ABOUT_ENABLED = Field(description="Whether webhooks are sent to it.")


class NewEndpoint(Body):
    """An endpoint to add to a bot."""

    url: Annotated[_Url, _ABOUT_URL]
    events: Annotated[_Events, _ABOUT_EVENTS] = Field(default_factory=lambda: list(DEFAULT_EVENTS))


class EndpointChange(Body):
    """Fields to change; a field that is left out stays as it is. Enabling an endpoint again clears `disabled_reason`."""

    url: Annotated[_Url | None, _ABOUT_URL] = None
    events: Annotated[_Events | None, _ABOUT_EVENTS] = None
    enabled: Annotated[bool | None, _ABOUT_ENABLED] = None


class EndpointView(BaseModel):
    """An endpoint."""

    id: Annotated[UuidText, Field(description="Id of the endpoint.")]
    bot: Annotated[str, Field(description="Id of its bot.", examples=["shop"])]
    url: Annotated[str, _ABOUT_URL]
    events: Annotated[list[EventType], _ABOUT_EVENTS]
    enabled: Annotated[bool, _ABOUT_ENABLED]
    disabled_reason: Annotated[
        str | None, Field(description="Why Adjourn disabled it, if it did.", examples=["the endpoint answered 410"])
    ]
    previous_secret_expires_at: Annotated[
        Instant | None, Field(description="Until when webhooks carry a signature by the previous secret, too.")
    ]
    created_at: Annotated[Instant, Field(description="When it was created.")]
    updated_at: Annotated[Instant, Field(description="When one of its fields was changed last.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "EndpointView":
        return cls(**_fields(row))


class EndpointCreated(EndpointView):
    """A new endpoint with its secret."""

    secret: Annotated[
        str,
        Field(
            description="Verifies signatures (Standard Webhooks). No other answer shows it.",
            examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"],
        ),
    ]

    @classmethod
    def with_secret(cls, row: Row[Any], secret: str) -> "EndpointCreated":
        return cls(**_fields(row), secret=secret)


class EndpointList(BaseModel):
    """A bot's endpoints, the oldest first."""

    endpoints: Annotated[list[EndpointView], Field(description="The endpoints.")]


class EndpointQuery(PageQuery):
    """Which endpoints."""

    bot: Annotated[SlugText | None, Field(description="Only of this bot.", examples=["shop"])] = None


class EndpointPage(EndpointList):
    """Endpoints of the bots that the key covers, the oldest first."""

    next: Next


class TestResult(BaseModel):
    """How an endpoint answered a `webhook.test` that was sent just now."""

    delivery_id: Annotated[UuidText, Field(description="Id of the delivery, for `GET /v1/deliveries/{delivery_id}`.")]
    delivered: Annotated[bool, Field(description="Whether the answer counts as delivered.")]
    status: Annotated[int | None, Field(description="HTTP status of the answer; null if there was none.", examples=[200])]
    error: Annotated[str | None, Field(description="Why it was not delivered.", examples=["connection refused"])]
    reply: Annotated[str, Field(description="The first kilobyte of the answer's body.", examples=["ok"])]
    duration_ms: Annotated[int, Field(description="Time until the answer, in ms.", examples=[9])]

    @classmethod
    def of(cls, test: TestDelivery) -> "TestResult":
        return cls(
            delivery_id=test.id,
            delivered=test.delivered,
            status=test.replied,
            error=test.error,
            reply=test.reply,
            duration_ms=test.duration_ms,
        )


class RotateSecret(Body):
    """How a secret is replaced."""

    previous_valid_s: Annotated[
        int,
        Field(
            ge=0, le=30 * _DAY_S, description="How long webhooks carry a signature by the old secret, too, in s.", examples=[3600]
        ),
    ] = _DAY_S
    force: Annotated[bool, Field(description="Rotate even if the previous secret is still valid: it ends at once.")] = False


class NewSecret(BaseModel):
    """The new secret of an endpoint."""

    secret: Annotated[
        str, Field(description="The secret. No other answer shows it.", examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"])
    ]
    previous_valid_until: Annotated[Instant, Field(description="Until when the old secret signs, too.")]


@router.post("/bots/{bot}/endpoints", status_code=201, responses=refuses(Conflict))
async def create_endpoint(
    bot: BotPath,
    new: NewEndpoint,
    *,
    clock: ClockDep,
    settings: SettingsDep,
    changing: ChangingDep,
    principal: Administering,
    response: Response,
) -> EndpointCreated:
    """Add an endpoint. Its secret, which verifies webhooks, is in this answer and in no other."""
    await _check_url(settings, principal, new.url)
    endpoint, secret = new_id(clock.now_ms()), new_webhook_secret()
    async with changing(principal) as change:
        most = (await bot_row(change.conn, bot)).limits.get("max_endpoints", settings.max_endpoints)
        if 0 < most <= len(await endpoints.of_bot(change.conn, bot)):
            raise over_quota("max_endpoints", most, "endpoints of this bot")
        row = await endpoints.create(
            change.conn,
            endpoint,
            bot,
            url=new.url,
            private_allowed=_may_name_private(principal),
            events=list(new.events),
            secret=SecretBox.of(settings).encrypt(secret),
        )
        await change.record("endpoint.created", endpoint, bot=bot, after=_audited(row))
    response.headers["Location"] = f"/v1/endpoints/{endpoint}"
    return EndpointCreated.with_secret(row, secret)


@router.get("/bots/{bot}/endpoints")
async def list_endpoints(bot: BotPath, engine: AdminEngineDep, _: Administering) -> EndpointList:
    """A bot's endpoints, the oldest first."""
    async with engine.connect() as conn:
        await bot_row(conn, bot)
        rows = await endpoints.of_bot(conn, bot)
    return EndpointList(endpoints=[EndpointView.of(row) for row in rows])


@router.get("/endpoints", **answers(EndpointPage))
async def list_all_endpoints(
    engine: AdminEngineDep, principal: Administering, asked: Annotated[EndpointQuery, Query()]
) -> JsonResponse:
    """Endpoints of all bots that the key covers, the oldest first."""
    principal.require("admin", bot=asked.bot)
    bots = principal.key.bots if asked.bot is None else frozenset({asked.bot})
    page = Page(asked, of=["endpoints", bots], place=str)
    async with engine.connect() as conn:
        rows = await endpoints.page(conn, bots, after=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: str(row.id), EndpointView.of)
    return JsonResponse({"endpoints": shown, "next": following})


@router.get("/endpoints/{endpoint_id}")
async def read_endpoint(endpoint_id: EndpointPath, engine: AdminEngineDep, principal: Administering) -> EndpointView:
    """One endpoint."""
    return EndpointView.of(await _read(engine, principal, endpoint_id))


@router.patch("/endpoints/{endpoint_id}")
async def change_endpoint(
    endpoint_id: EndpointPath,
    wanted: EndpointChange,
    *,
    engine: AdminEngineDep,
    settings: SettingsDep,
    changing: ChangingDep,
    principal: Administering,
) -> EndpointView:
    """Update URL, events or `enabled`. Pending deliveries go to the new URL."""
    if wanted.url is not None:
        await _read(engine, principal, endpoint_id)
        await _check_url(settings, principal, wanted.url)
    changes = wanted.model_dump(exclude_none=True)
    async with changing(principal) as change:
        before = await endpoint_row(change.conn, principal, endpoint_id)
        more: dict[str, Any] = {"disabled_reason": None} if wanted.enabled else {}
        if wanted.url is not None:
            more["private_allowed"] = _may_name_private(principal)
        row = await endpoints.change(change.conn, before.id, changes | more)
        await change.record("endpoint.changed", row.id, bot=row.bot_id, before=_audited(before), after=_audited(row))
    return EndpointView.of(row)


@router.delete("/endpoints/{endpoint_id}", status_code=204)
async def delete_endpoint(endpoint_id: EndpointPath, changing: ChangingDep, principal: Administering) -> None:
    """Delete an endpoint: nothing more is sent to it, and its pending deliveries are cancelled."""
    async with changing(principal) as change:
        row = await endpoint_row(change.conn, principal, endpoint_id)
        await endpoints.delete(change.conn, row.id)
        await change.record("endpoint.deleted", row.id, bot=row.bot_id, before=_audited(row))


@router.post("/endpoints/{endpoint_id}/test")
async def test_endpoint(
    endpoint_id: EndpointPath,
    engine: AdminEngineDep,
    clock: ClockDep,
    settings: SettingsDep,
    *,
    principal: Administering,
    tests: TestsDep,
) -> TestResult:
    """Send the endpoint a signed `webhook.test` now. If it is delivered, pending deliveries are sent at once, too."""
    now_ms = clock.now_ms()
    endpoint = await _read(engine, principal, endpoint_id)
    # No connection is held while the receiver answers.
    if not tests.try_take(endpoint.bot_id):
        raise RateLimited("tests of this bot's endpoints are under way", hint="wait for their results", retry_after_s=1)
    try:
        test = await send_test(settings, endpoint, now_ms=now_ms)
    finally:
        tests.give_back(endpoint.bot_id)
    async with engine.begin() as conn:
        result: dict[str, Any] = {"delivery": test.id, "delivered": test.delivered, "status": test.replied}
        await audit.record(conn, principal.actor, "endpoint.tested", endpoint.id, bot=endpoint.bot_id, **result)
        await deliveries.insert_test(conn, test)
        if test.delivered:
            await endpoints.save_health(conn, {endpoint.id: HEALTHY})
    return TestResult.of(test)


@router.post("/endpoints/{endpoint_id}/rotate-secret", responses=refuses(Conflict))
async def rotate_secret(
    endpoint_id: EndpointPath,
    clock: ClockDep,
    changing: ChangingDep,
    settings: SettingsDep,
    *,
    principal: Administering,
    rotate: RotateSecret | None = None,
) -> NewSecret:
    """Sign with a new secret from now on, and for a while with the present one, too.

    409 while the previous secret is still valid, as after an answer that was lost; `force` ends that one at once.
    """
    wanted, secret, now_ms = rotate or RotateSecret(), new_webhook_secret(), clock.now_ms()
    until_ms = now_ms + wanted.previous_valid_s * 1000
    async with changing(principal) as change:
        endpoint = await endpoint_row(change.conn, principal, endpoint_id)
        if not wanted.force:
            _check_previous_over(endpoint, now_ms=now_ms)
        changes = {
            "secret": SecretBox.of(settings).encrypt(secret),
            "previous_secret": endpoint.secret,
            "previous_secret_expires_at": instant(until_ms),
        }
        await endpoints.change(change.conn, endpoint.id, changes)
        await change.record("endpoint.secret_rotated", endpoint.id, bot=endpoint.bot_id, previous_valid_until=rfc3339(until_ms))
    return NewSecret(secret=secret, previous_valid_until=rfc3339(until_ms))


def _check_previous_over(endpoint: Row[Any], *, now_ms: int) -> None:
    """An endpoint has two secrets at most, and its owner was promised that the older one is valid until it expires."""
    if len(valid_secrets(endpoint, now_ms=now_ms)) > 1:
        expires = rfc3339(ms_of(endpoint.previous_secret_expires_at))
        raise Conflict(
            f"its secret was rotated already, and the previous one is valid until {expires}",
            hint='rotate again after that, or with `"force": true`, which ends the previous one at once',
        )


async def _check_url(settings: Settings, principal: Principal, url: str) -> None:
    allowed = settings.private_webhooks_allowed
    await check_destination(url, allow_private=allowed if _may_name_private(principal) else False)


def _may_name_private(principal: Principal) -> bool:
    """A receiver's answer is shown, so a tenant's admin could read what is inside the operator's network."""
    return principal.key.bots is None


async def _read(engine: AsyncEngine, principal: Principal, endpoint_id: str) -> Row[Any]:
    async with engine.connect() as conn:
        return await endpoint_row(conn, principal, endpoint_id)


async def endpoint_row(conn: AsyncConnection, principal: Principal, endpoint_id: str) -> Row[Any]:
    row = await endpoints.find(conn, id_of("endpoint", endpoint_id))
    return found(row, "endpoint", endpoint_id, seen=lambda row: principal.covers(row.bot_id))


def _audited(row: Row[Any]) -> dict[str, Any]:
    """The fields of an endpoint that an admin chooses, and why Adjourn disabled it."""
    return {name: _fields(row)[name] for name in ("url", "events", "enabled", "disabled_reason")}


def _fields(row: Row[Any]) -> dict[str, Any]:
    expires_at = row.previous_secret_expires_at
    return {
        "id": row.id,
        "bot": row.bot_id,
        "url": row.url,
        "events": row.events,
        "enabled": row.enabled,
        "disabled_reason": row.disabled_reason,
        "previous_secret_expires_at": None if expires_at is None else rfc3339(ms_of(expires_at)),
        "created_at": rfc3339(ms_of(row.created_at)),
        "updated_at": rfc3339(ms_of(row.updated_at)),
    }
