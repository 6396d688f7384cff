"""The audit log: who changed what and when."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.auth import AdminEngineDep, Administering
from app.api.fields import GivenInstant, IdText, Instant, SlugText, UuidText, text_of
from app.api.paging import Next, Page, PageQuery
from app.api.responses import JsonResponse, answers
from app.archive import audit
from app.archive.audit import AuditFilter
from app.domain.instants import ms_of, rfc3339

router = APIRouter(prefix="/v1/audit", tags=["audit"])


class AuditQuery(PageQuery):
    """Which entries."""

    bot: Annotated[SlugText | None, Field(description="Only changes that concern this bot.", examples=["shop"])] = None
    key_id: Annotated[UUID | None, Field(description="Only changes made with this key.")] = None
    action: Annotated[IdText | None, Field(description="Only this action.", examples=["policy.changed"])] = None
    target: Annotated[IdText | None, Field(description="Only changes of the thing of this id.", examples=["shop"])] = None
    start: Annotated[GivenInstant | None, Field(alias="from", description="Only changes at or after this instant.")] = None
    end: Annotated[GivenInstant | None, Field(alias="to", description="Only changes before this instant.")] = None

    def filter(self, bots: frozenset[str] | None) -> AuditFilter:
        """The filter, among the bots that the key covers."""
        return AuditFilter(
            bots=bots,
            bot=self.bot,
            key_id=text_of(self.key_id),
            action=self.action,
            target=self.target,
            from_ms=None if self.start is None else ms_of(self.start),
            to_ms=None if self.end is None else ms_of(self.end),
        )


class AuditEntry(BaseModel):
    """One act of an admin: a change, an export, an erasure, a close, a replay or a test."""

    id: Annotated[int, Field(description="Number of the entry; later entries have larger ones.", examples=[6])]
    at: Annotated[Instant, Field(description="When the change was made.")]
    actor: Annotated[str, Field(description="Name of the key that made it, or of the command.", examples=["the shop's bot"])]
    key_id: Annotated[UuidText | None, Field(description="Id of that key; null if the change was not made by API.")]
    action: Annotated[str, Field(description="The thing and what was done to it.", examples=["policy.changed"])]
    bot: Annotated[str | None, Field(description="The one bot that the change concerns, if there is one.", examples=["shop"])]
    target: Annotated[str, Field(description="Id of the thing that was changed.", examples=["shop"])]
    detail: Annotated[
        dict[str, Any],
        Field(
            description="`before` and `after`: the fields that differ, where a side is longer than 4 KB its longest values as "
            "their size; and what else there is to say. Never a secret, nor a user's id.",
            examples=[{"before": {"name": "Shop"}, "after": {"name": "The shop"}}],
        ),
    ]

    @classmethod
    def of(cls, row: Row[Any]) -> "AuditEntry":
        return cls(
            id=row.id,
            at=rfc3339(ms_of(row.at)),
            actor=row.actor,
            key_id=row.key_id,
            action=row.action,
            bot=row.bot_id,
            target=row.target,
            detail=row.detail,
        )


class AuditPage(BaseModel):
    """Entries of the audit log, the latest first."""

    entries: Annotated[list[AuditEntry], Field(description="The entries of this page.")]
    next: Next


@router.get("", **answers(AuditPage))
async def list_changes(engine: AdminEngineDep, principal: Administering, asked: Annotated[AuditQuery, Query()]) -> JsonResponse:
    """Changes of bots, policies, endpoints, keys and sessions, the latest first. A limited key sees those of its bots."""
    if asked.bot is not None:
        principal.require("admin", bot=asked.bot)
    wanted = asked.filter(principal.key.bots)
    page = Page(asked, of=["audit", wanted], place=int)
    async with engine.connect() as conn:
        rows = await audit.page(conn, wanted, before=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: int(row.id), AuditEntry.of)
    return JsonResponse({"entries": shown, "next": following})
