"""A bot's open sessions with their deadlines, as Redis has them now."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from msgspec import Struct

from app.api.auth import Reading, known_bot
from app.api.dependencies import ResourcesDep
from app.api.responses import JsonResponse, telling
from app.api.routes.sessions import reads_of
from app.api.schemas.problems import PROBLEMS
from app.api.schemas.sessions import LivePage, PageQuery
from app.queries.cursor import cursor_of, place_of
from app.queries.sessions import told

router = APIRouter(prefix="/v1/bots/{bot}/live", tags=["sessions"], responses=PROBLEMS)


class Spot(Struct, frozen=True):
    """Where a page ended: the last session's instant of opening, and its strand as a member."""

    opened_at_ms: int
    member: bytes


@router.get("", **telling(LivePage))
async def list_live(bot: str, resources: ResourcesDep, _: Reading, asked: Annotated[PageQuery, Query()]) -> JsonResponse:
    """Open sessions, the longest open first. One that closes while the list is walked may be left out."""
    known_bot(resources.config, bot)
    of = ["live", bot]
    spot = place_of(asked.cursor, of=of, kind=Spot)
    after = None if spot is None else (spot.opened_at_ms, spot.member)
    page = reads_of(resources).live_page(bot, after=after, limit=asked.limit)
    (shown, last), count = await asyncio.gather(page, resources.live.count(bot))
    following = None if last is None else cursor_of(Spot(*last), of=of)
    return JsonResponse({"open": count, "sessions": [told(one) for one in shown], "next": following})
