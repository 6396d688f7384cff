"""Webhook deliveries: list them, read one with its attempts, send them again."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field, ValidationInfo, field_validator
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.api.auth import AdminEngineDep, Administering, ClockDep, Principal, found, id_of
from app.api.fields import Body, GivenInstant, IdText, Instant, SlugText, UuidText, component, text_of
from app.api.paging import Next, Page, PageQuery
from app.api.responses import JsonResponse, answers, refuses
from app.api.routes.endpoints import endpoint_row
from app.archive import audit, deliveries, endpoints
from app.archive.deliveries import DeliveryFilter, DeliveryPlace
from app.clock import Clock
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict, NotFound

router = APIRouter(prefix="/v1/deliveries", tags=["webhooks"])

REPLAY_BATCH = 5_000
Status = Literal["pending", "delivered", "failed", "cancelled"]
_DeliveryPath = Annotated[str, Path(description="Id of the delivery.", json_schema_extra={"format": "uuid"})]


class DeliveryQuery(PageQuery):
    """Which deliveries."""

    bot: Annotated[SlugText | None, Field(description="Only of this bot.", examples=["shop"])] = None
    endpoint_id: Annotated[UUID | None, Field(description="Only to this endpoint.")] = None
    session_id: Annotated[UUID | None, Field(description="Only of this session.")] = None
    event: Annotated[IdText | None, Field(description="Only of this event.", examples=["session.closed"])] = None
    status: Annotated[Status | None, Field(description="Only with this status.")] = None
    since: Annotated[GivenInstant | None, Field(description="Only those created at or after this instant.")] = None

    def filter(self, bots: frozenset[str] | None) -> DeliveryFilter:
        """The filter, among the bots that the key covers."""
        return DeliveryFilter(
            bots=bots,
            bot=self.bot,
            endpoint_id=text_of(self.endpoint_id),
            session_id=text_of(self.session_id),
            event=self.event,
            status=self.status,
            since_ms=None if self.since is None else ms_of(self.since),
        )


class AttemptView(BaseModel):
    """One attempt to deliver."""

    attempt: Annotated[int, Field(description="Number of the attempt, from 1.", examples=[1])]
    started_at: Annotated[Instant, Field(description="When it started.")]
    duration_ms: Annotated[int | None, Field(description="How long it took, in ms; null while it is under way.", examples=[9])]
    status: Annotated[int | None, Field(description="HTTP status of the answer; null if there was none.", examples=[200])]
    error: Annotated[str | None, Field(description="Why it failed, if it did.", examples=["connection refused"])]
    reply: Annotated[str | None, Field(description="The first kilobyte of the answer's body.", examples=["ok"])]

    @classmethod
    def of(cls, row: Row[Any]) -> "AttemptView":
        return cls(
            attempt=row.attempt,
            started_at=rfc3339(ms_of(row.started_at)),
            duration_ms=row.duration_ms,
            status=row.status,
            error=row.error,
            reply=row.reply,
        )


class DeliveryView(BaseModel):
    """One event to one endpoint."""

    id: Annotated[UuidText, Field(description="Id of the delivery: the `webhook-id` of all its attempts.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    endpoint_id: Annotated[UuidText, Field(description="Id of the endpoint.")]
    session_id: Annotated[UuidText | None, Field(description="Id of the session; null for a `webhook.test`.")]
    event: Annotated[str, Field(description="Type of the event.", examples=["session.closed"])]
    status: Annotated[
        Status, Field(description="`failed` and `cancelled` are dead letters: nothing sends them again unless they are replayed.")
    ]
    attempts: Annotated[int, Field(description="Attempts so far.", examples=[1])]
    created_at: Annotated[Instant, Field(description="When it was put into the outbox.")]
    event_at: Annotated[Instant, Field(description="When the event happened, in the bot's own time.")]
    next_attempt_at: Annotated[
        Instant | None,
        Field(description="When a pending one is tried next; while an attempt is under way, when another worker may retry."),
    ]
    delivered_at: Annotated[Instant | None, Field(description="When it was delivered, if it was.")]
    failed_at: Annotated[Instant | None, Field(description="When it was given up or cancelled, if it was.")]
    last_status: Annotated[int | None, Field(description="HTTP status of the last attempt.", examples=[200])]
    last_error: Annotated[str | None, Field(description="Why the last attempt failed, if it did.", examples=["timeout"])]
    after_id: Annotated[UuidText | None, Field(description="Id of the delivery that is settled before this one is sent.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "DeliveryView":
        return cls(**_fields(row))


class DeliveryDetail(DeliveryView):
    """A delivery with its payload and its attempts."""

    payload: Annotated[dict[str, Any], component("WebhookEvent"), Field(description="The body that every attempt sends.")]
    history: Annotated[list[AttemptView], Field(description="Each attempt so far, in order.")]

    @classmethod
    def with_history(cls, row: Row[Any], attempts: list[Row[Any]]) -> "DeliveryDetail":
        return cls(**_fields(row), payload=msgspec.json.decode(row.body), history=[AttemptView.of(each) for each in attempts])


class DeliveryPage(BaseModel):
    """Deliveries, the newest first."""

    deliveries: Annotated[list[DeliveryView], Field(description="The deliveries of this page.")]
    next: Next


class ReplayMany(Body):
    """Which dead letters to send again: `bot` or `endpoint_id` is required."""

    since: Annotated[GivenInstant, Field(description="Deliveries that failed at or after this instant.")]
    bot: Annotated[SlugText | None, Field(description="Deliveries of this bot.", examples=["shop"])] = None
    endpoint_id: Annotated[
        UUID | None, Field(strict=False, description="Deliveries to this endpoint.", validate_default=True)
    ] = None

    # Of a field, not of the model, so that it is reported with the faults of other fields. One that is faulty is not in `data`.
    @field_validator("endpoint_id")
    @classmethod
    def _of_bot_or_endpoint(cls, endpoint_id: UUID | None, fields: ValidationInfo) -> UUID | None:
        if endpoint_id is None and fields.data.get("bot", ...) is None:
            raise ValueError("give `bot` or `endpoint_id`: a replay is of one of them")
        return endpoint_id


class ReplayedCount(BaseModel):
    """How much was replayed."""

    replayed: Annotated[int, Field(description="How many are pending again.", examples=[12])]


@router.get("", **answers(DeliveryPage))
async def list_deliveries(
    engine: AdminEngineDep, principal: Administering, asked: Annotated[DeliveryQuery, Query()]
) -> JsonResponse:
    """Deliveries, the newest first."""
    principal.require("admin", bot=asked.bot)
    wanted = asked.filter(principal.key.bots)
    page = Page(asked, of=["deliveries", wanted], place=DeliveryPlace)
    async with engine.connect() as conn:
        rows = await deliveries.page(conn, wanted, after=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: DeliveryPlace(row.created_at, row.id), DeliveryView.of)
    return JsonResponse({"deliveries": shown, "next": following})


@router.get("/{delivery_id}")
async def read_delivery(delivery_id: _DeliveryPath, engine: AdminEngineDep, principal: Administering) -> DeliveryDetail:
    """One delivery with its payload and each of its attempts."""
    async with engine.connect() as conn:
        row = await _delivery(conn, principal, delivery_id)
        return DeliveryDetail.with_history(row, await deliveries.attempts_of(conn, row.id))


@router.post("/replay", responses=refuses(NotFound))
async def replay_deliveries(
    asked: ReplayMany, engine: AdminEngineDep, clock: ClockDep, principal: Administering
) -> ReplayedCount:
    """Send all dead letters since an instant again, of an endpoint or of a bot; disabled endpoints are left out."""
    principal.require("admin", bot=asked.bot)
    endpoint = text_of(asked.endpoint_id)
    bot = asked.bot or await _bot_of(engine, principal, str(endpoint))
    wanted = DeliveryFilter(bots=principal.key.bots, bot=bot, endpoint_id=endpoint, since_ms=ms_of(asked.since))
    replayed = await _replay_all(engine, clock, wanted, actor=principal.actor)
    detail: dict[str, Any] = {"since": rfc3339(ms_of(asked.since)), "replayed": replayed}
    async with engine.begin() as conn:
        await audit.record(conn, principal.actor, "deliveries.replayed", endpoint or bot, bot=bot, **detail)
    return ReplayedCount(replayed=replayed)


@router.post("/{delivery_id}/replay", status_code=202, responses=refuses(Conflict))
async def replay_delivery(
    delivery_id: _DeliveryPath, engine: AdminEngineDep, clock: ClockDep, principal: Administering
) -> DeliveryView:
    """Send a delivery again under its id, whatever its status; its retries start anew."""
    async with engine.begin() as conn:
        row = await _delivery(conn, principal, delivery_id)
        endpoint = await endpoints.find(conn, row.endpoint_id)
        if endpoint is None or not endpoint.enabled:
            raise Conflict("its endpoint is disabled or deleted", hint="enable the endpoint, then replay")
        if not await deliveries.replay(conn, row.id, now_ms=clock.now_ms()):
            raise Conflict("it is pending already", hint="wait for its next attempt")
        before, after = {"status": row.status}, {"status": "pending"}
        await audit.record(conn, principal.actor, "delivery.replayed", row.id, bot=row.bot_id, before=before, after=after)
        return DeliveryView.of(await _delivery(conn, principal, delivery_id))


async def _replay_all(engine: AsyncEngine, clock: Clock, wanted: DeliveryFilter, *, actor: audit.Actor) -> int:
    """Replay in batches: one transaction over all would block the dispatcher, and a time-out would undo all of it."""
    replayed, done = 0, REPLAY_BATCH
    while done == REPLAY_BATCH:
        async with engine.begin() as conn:
            await audit.check_key(conn, actor)
            done = await deliveries.replay_failed(conn, wanted, room=REPLAY_BATCH, now_ms=clock.now_ms())
        replayed += done
    return replayed


async def _bot_of(engine: AsyncEngine, principal: Principal, endpoint_id: str) -> str:
    async with engine.connect() as conn:
        return str((await endpoint_row(conn, principal, endpoint_id)).bot_id)


async def _delivery(conn: AsyncConnection, principal: Principal, delivery_id: str) -> Row[Any]:
    row = await deliveries.find(conn, id_of("delivery", delivery_id))
    return found(row, "delivery", delivery_id, seen=lambda row: principal.covers(row.bot_id))


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "bot": row.bot_id,
        "endpoint_id": str(row.endpoint_id),
        "session_id": row.session_id,
        "event": row.event,
        "status": row.status,
        "attempts": row.attempt,
        "created_at": rfc3339(ms_of(row.created_at)),
        "event_at": rfc3339(ms_of(row.event_at)),
        "next_attempt_at": rfc3339(ms_of(row.next_attempt_at)) if row.status == "pending" else None,
        "delivered_at": rfc3339(ms_of(row.delivered_at)) if row.delivered_at else None,
        "failed_at": rfc3339(ms_of(row.failed_at)) if row.failed_at else None,
        "last_status": row.last_status,
        "last_error": row.last_error,
        "after_id": row.after_id,
    }
