"""Deliveries and what can be done with an endpoint's webhooks, as the API takes and tells them."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Row

from app.api.schemas.common import Body, Next, Slug
from app.api.schemas.sessions import PageQuery, Text, When
from app.archive.delivery_log import DeliveryFilter, TestDelivery
from app.domain.instants import DAY_MS, ms_of, rfc3339

Status = Literal["pending", "delivered", "failed", "cancelled"]
_DAY_S = DAY_MS // 1000


class DeliveryQuery(PageQuery):
    """Which deliveries to list. `since`: only those made at or after this instant."""

    bot: Slug | None = None
    endpoint_id: UUID | None = None
    session_id: UUID | None = None
    event: Text = None
    status: Status | None = None
    since: When = None

    def wanted(self, bots: frozenset[str] | None) -> DeliveryFilter:
        """What is asked for, among the bots that the asker may see."""
        return DeliveryFilter(
            bots=bots,
            bot=self.bot,
            endpoint_id=id_or_none(self.endpoint_id),
            session_id=id_or_none(self.session_id),
            event=self.event,
            status=self.status,
            since_ms=None if self.since is None else ms_of(self.since),
        )


class AttemptView(BaseModel):
    """One attempt. `status` is the HTTP status that came back, `reply` the first kilobyte of what came with it."""

    attempt: int
    started_at: str
    duration_ms: int | None
    status: int | None
    error: str | None
    reply: str | None

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
    """One event to one endpoint. Its `id` is the `webhook-id` of all its attempts.

    `after_id` names the delivery that must be settled before this one is tried. `next_attempt_at` is set while it is pending;
    while an attempt is under way it is when another worker may take over.
    """

    id: str
    bot: str
    endpoint_id: str
    session_id: str | None
    event: str
    status: Status
    attempts: int
    created_at: str
    event_at: str
    next_attempt_at: str | None
    delivered_at: str | None
    failed_at: str | None
    last_status: int | None
    last_error: str | None
    after_id: str | None

    @classmethod
    def of(cls, row: Row[Any]) -> "DeliveryView":
        return cls(**_told(row))


class DeliveryDetail(DeliveryView):
    """A delivery with the payload that is sent and each attempt so far."""

    payload: dict[str, Any]
    history: list[AttemptView]

    @classmethod
    def with_history(cls, row: Row[Any], attempts: list[Row[Any]]) -> "DeliveryDetail":
        return cls(**_told(row), payload=msgspec.json.decode(row.body), history=[AttemptView.of(each) for each in attempts])


class DeliveryPage(BaseModel):
    """`next` is the cursor of the page that follows; null at the end."""

    deliveries: list[DeliveryView]
    next: Next


class ReplayMany(BaseModel):
    """All dead letters (failed, cancelled) since an instant, of an endpoint or of a bot."""

    model_config = ConfigDict(extra="forbid")

    since: AwareDatetime
    bot: Slug | None = None
    endpoint_id: UUID | None = None

    @model_validator(mode="after")
    def _of_somebody(self) -> "ReplayMany":
        if self.bot is None and self.endpoint_id is None:
            raise ValueError("give `bot` or `endpoint_id`: a replay is of one of them")
        return self


class Replayed(BaseModel):
    """How many deliveries are pending again."""

    replayed: int


class TestResult(BaseModel):
    """What the endpoint said to a `webhook.test` that was sent just now."""

    delivery_id: str
    delivered: bool
    status: int | None
    error: str | None
    reply: str
    duration_ms: int

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
    """For how long the present secret stays valid beside the new one.

    While a previous one is still valid, rotating again would end it before its time: that is refused unless `force` is true.
    """

    previous_valid_s: Annotated[int, Field(ge=0, le=30 * _DAY_S)] = _DAY_S
    force: bool = False


class NewSecret(BaseModel):
    """The new secret, shown this once. Until `previous_valid_until` webhooks carry a signature of the old one, too."""

    secret: str
    previous_valid_until: str


def id_or_none(known: UUID | None) -> str | None:
    return None if known is None else str(known)


def _told(row: Row[Any]) -> dict[str, Any]:
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
