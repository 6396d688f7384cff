"""Records that Postgres refused: set aside, so that their neighbours were archived, and shown here to an admin."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.auth import Administering
from app.api.resources import Held
from app.api.schemas.common import Cursor, Limit
from app.api.schemas.problems import PROBLEMS
from app.api.schemas.rejects import RejectPage, RejectView
from app.archive import rejects
from app.queries.cursor import cursor_of, page_of, place_of

router = APIRouter(prefix="/v1", tags=["operations"], responses=PROBLEMS)

LIST = "rejects"


@router.get("/rejects")
async def list_rejects(
    resources: Held, principal: Administering, limit: Annotated[Limit, Query()] = 50, cursor: Annotated[Cursor, Query()] = None
) -> RejectPage:
    """What was set aside, the latest first. Anything here is a fault of Adjourn's: please report it with its `error`."""
    before = place_of(cursor, of=LIST, kind=int)
    async with resources.engine.connect() as conn:
        rows = await rejects.page(conn, bots=principal.key.bots, before=before, limit=limit + 1)
    shown, last = page_of(rows, limit=limit)
    return RejectPage(rejects=[RejectView.of(row) for row in shown], next=last and cursor_of(last.id, of=LIST))
