"""Records that could not be archived: set aside, so that their neighbours were, and shown here to an admin."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import Administering, Principal
from app.api.dependencies import ResourcesDep
from app.api.schemas.common import Cursor, Limit
from app.api.schemas.problems import PROBLEMS
from app.api.schemas.rejects import RejectDetail, RejectPage, RejectsReplayed, RejectView
from app.archive import rejects
from app.archive.audit import Actor
from app.closing.rejects import replay, replay_all
from app.errors import NotFound
from app.queries.cursor import cursor_of, page_of, place_of

router = APIRouter(prefix="/v1", tags=["operations"], responses=PROBLEMS)

LIST = "rejects"


@router.get("/rejects")
async def list_rejects(
    resources: ResourcesDep,
    principal: Administering,
    limit: Annotated[Limit, Query()] = 50,
    cursor: Annotated[Cursor, Query()] = None,
) -> RejectPage:
    """What was set aside, the latest first. Anything here is a fault of Adjourn's: please report it with its `error`."""
    before = place_of(cursor, of=LIST, kind=int)
    async with resources.engine.connect() as conn:
        rows = await rejects.page(conn, bots=principal.key.bots, before=before, limit=limit + 1)
    shown, last = page_of(rows, limit=limit)
    return RejectPage(rejects=[RejectView.of(row) for row in shown], next=last and cursor_of(last.id, of=LIST))


@router.post("/rejects/replay", status_code=202)
async def replay_rejects(resources: ResourcesDep, principal: Administering) -> RejectsReplayed:
    """Archive all rejects of the bots that the key covers again, the oldest first; one that fails again gets a new id."""
    actor = Actor(principal.key.name, principal.key.id)
    done = await replay_all(resources.engine, resources.pipe, bots=principal.key.bots, actor=actor)
    return RejectsReplayed(replayed=done.replayed, unreadable=done.unreadable)


@router.get("/rejects/{reject_id}")
async def read_reject(reject_id: str, resources: ResourcesDep, principal: Administering) -> RejectDetail:
    """One with all that Redis held of it."""
    async with resources.engine.connect() as conn:
        return RejectDetail.of(await _reject(conn, principal, reject_id))


@router.post("/rejects/{reject_id}/replay", status_code=202)
async def replay_reject(reject_id: str, resources: ResourcesDep, principal: Administering) -> RejectView:
    """Have it archived again, now that what it failed on is mended. If it fails again, it is set aside under a new id."""
    async with resources.engine.begin() as conn:
        row = await _reject(conn, principal, reject_id, locked=True)
        await replay(conn, resources.pipe, row, actor=Actor(principal.key.name, principal.key.id))
        return RejectView.of(row)


async def _reject(conn: AsyncConnection, principal: Principal, reject_id: str, *, locked: bool = False) -> Row[Any]:
    """What exists and is of a bot that the key covers; what is of no bot that is known is for keys of all bots."""
    known = re.fullmatch(r"[0-9]{1,18}", reject_id)
    row = await rejects.find(conn, int(reject_id), locked=locked) if known else None
    if row is None or not (principal.covers(row.bot_id) if row.bot_id else principal.key.bots is None):
        raise NotFound(f"there is no reject {reject_id[:64]!r}")
    return row
