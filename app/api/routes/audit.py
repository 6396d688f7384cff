"""The audit log: who changed what and when."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.auth import Administering
from app.api.dependencies import ResourcesDep
from app.api.schemas.audit import AuditEntry, AuditPage
from app.api.schemas.common import Cursor, Limit, Slug
from app.api.schemas.problems import PROBLEMS
from app.archive import audit
from app.queries.cursor import cursor_of, page_of, place_of

router = APIRouter(prefix="/v1", tags=["audit"], responses=PROBLEMS)


@router.get("/audit")
async def list_changes(
    resources: ResourcesDep,
    principal: Administering,
    bot: Annotated[Slug | None, Query(description="Only changes that concern this bot.")] = None,
    limit: Annotated[Limit, Query()] = 50,
    *,
    cursor: Annotated[Cursor, Query()] = None,
) -> AuditPage:
    """Changes of bots, policies, endpoints and keys, the latest first. A limited key sees those of its bots."""
    if bot is not None:
        principal.require("admin", bot=bot)
    of = ["audit", bot]
    before = place_of(cursor, of=of, kind=int)
    async with resources.engine.connect() as conn:
        rows = await audit.page(conn, bots=principal.key.bots, bot=bot, before=before, limit=limit + 1)
    shown, last = page_of(rows, limit=limit)
    return AuditPage(entries=[AuditEntry.of(row) for row in shown], next=last and cursor_of(last.id, of=of))
