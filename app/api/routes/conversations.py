"""A conversation's sessions, the open ones included. Its variables and context: `app.api.routes.variables`."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.api.auth import Principal, Reading
from app.api.dependencies import ResourcesDep
from app.api.responses import JsonResponse, telling
from app.api.routes.sessions import bots_asked_for, reads_of
from app.api.schemas.common import PRINTABLE
from app.api.schemas.problems import PROBLEMS
from app.api.schemas.sessions import ConversationQuery, SessionPage
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionPlace
from app.domain.strand import LONGEST_CONVERSATION
from app.queries.cursor import cursor_of, place_of
from app.queries.sessions import told
from app.resources import Resources

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], responses=PROBLEMS)

Conversation = Annotated[str, Path(min_length=1, max_length=LONGEST_CONVERSATION, pattern=PRINTABLE)]


@router.get("/{conversation_id:path}/sessions", **telling(SessionPage))
async def list_conversation(
    conversation_id: Conversation, resources: ResourcesDep, principal: Reading, asked: Annotated[ConversationQuery, Query()]
) -> JsonResponse:
    """The conversation's sessions, the latest opened first; on the first page, open ones come on top of `limit`."""
    wanted = SessionFilter(bots=bots_asked_for(resources, principal, asked.bot), conversation=conversation_id)
    of = ["conversation", wanted]
    after = place_of(asked.cursor, of=of, kind=SessionPlace)
    live = [] if after is not None else await _live(resources, principal, asked.bot, conversation_id)
    shown, last = await reads_of(resources).page(wanted, after=after, limit=asked.limit)
    archived = {one.session.id for one in shown}
    sessions = [one for one in live if one.session.id not in archived] + shown
    return JsonResponse({"sessions": [told(one) for one in sessions], "next": None if last is None else cursor_of(last, of=of)})


async def _live(resources: Resources, principal: Principal, bot: str | None, conversation: str) -> list[ArchivedSession]:
    names = [bot] if bot is not None else [known.id for known in resources.config.bots() if principal.covers(known.id)]
    reads = reads_of(resources)
    found = await asyncio.gather(*(reads.lately_in(name, conversation) for name in names))
    every = [one for of_bot in found for one in of_bot]
    return sorted(every, key=lambda one: (one.session.opened_at_ms, one.session.id), reverse=True)
