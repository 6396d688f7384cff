"""A bot's closed sessions added up."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.auth import Reading, known_bot
from app.api.dependencies import ResourcesDep
from app.api.schemas.problems import PROBLEMS
from app.api.schemas.summary import SummaryQuery, SummaryView
from app.archive.summary import summarise

router = APIRouter(prefix="/v1/bots/{bot}/summary", tags=["sessions"], responses=PROBLEMS)


@router.get("")
async def read_summary(bot: str, resources: ResourcesDep, _: Reading, asked: Annotated[SummaryQuery, Query()]) -> SummaryView:
    """Sessions, billing sessions, interactions, outcomes, containment. Those of developers are left out unless asked for."""
    known_bot(resources.config, bot)
    async with resources.engine.connect() as conn:
        return SummaryView.of(await summarise(conn, asked.filter(bot)))
