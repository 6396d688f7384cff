"""Sessions: lists of closed ones; one by its id, open or closed, with its messages and why it is as it is; closing one."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from app.api.auth import Principal, Reading, ReadingOrIngesting, no_bot
from app.api.dependencies import ResourcesDep
from app.api.responses import JsonResponse, telling
from app.api.schemas.problems import PROBLEMS
from app.api.schemas.sessions import Explanation, MessagePage, MessagesQuery, SessionPage, SessionQuery, SessionView
from app.archive.session_reads import ArchivedSession, SessionPlace
from app.domain.explanation import explain
from app.domain.records import Close
from app.domain.session_view import message_view
from app.errors import NotFound
from app.queries.cursor import cursor_of, page_of, place_of
from app.queries.sessions import Sessions, told
from app.resources import Resources

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=PROBLEMS)


@router.get("", **telling(SessionPage))
async def list_sessions(resources: ResourcesDep, principal: Reading, asked: Annotated[SessionQuery, Query()]) -> JsonResponse:
    """Closed sessions, the latest opened first, of the bots that the key covers. Open ones: `GET /v1/bots/{bot}/live`."""
    wanted = asked.filter(bots_asked_for(resources, principal, asked.bot))
    of = ["sessions", wanted]
    after = place_of(asked.cursor, of=of, kind=SessionPlace)
    shown, last = await reads_of(resources).page(wanted, after=after, limit=asked.limit)
    return JsonResponse({"sessions": [told(one) for one in shown], "next": None if last is None else cursor_of(last, of=of)})


@router.get("/{session_id}", **telling(SessionView))
async def read_session(session_id: str, resources: ResourcesDep, principal: Reading) -> JsonResponse:
    """One session, open or closed."""
    return JsonResponse(told(await found_session(resources, principal, session_id)))


@router.get("/{session_id}/messages", **telling(MessagePage))
async def list_messages(
    session_id: str, resources: ResourcesDep, principal: Reading, asked: Annotated[MessagesQuery, Query()]
) -> JsonResponse:
    """A session's messages in order."""
    found = await found_session(resources, principal, session_id)
    of = ["messages", found.session.id]
    after = place_of(asked.cursor, of=of, kind=int) or 0
    kept = await reads_of(resources).messages(found.session, after=after, limit=asked.limit + 1)
    shown, last = page_of(kept, limit=asked.limit)
    following = None if last is None else cursor_of(last.sequence, of=of)
    return JsonResponse({"messages": [message_view(message) for message in shown], "next": following})


@router.get("/{session_id}/explanation", **telling(Explanation))
async def explain_session(session_id: str, resources: ResourcesDep, principal: Reading) -> JsonResponse:
    """Which entry opened it and by which rule, what moved its deadline, what closed it, under which policy version."""
    found = await found_session(resources, principal, session_id)
    messages = await reads_of(resources).telling(found.session)
    return JsonResponse(explain(found.strand, found.session, messages))


@router.post("/{session_id}/close", **telling(SessionView))
async def close_session(session_id: str, resources: ResourcesDep, principal: ReadingOrIngesting) -> JsonResponse:
    """Close an open session, reason `api`. One that is closed already is left as it is; either way this tells how it stands."""
    found = await found_session(resources, principal, session_id)
    bot = resources.config.bot_or_deleted(found.strand.bot)
    if found.session.closed_at_ms is None and bot is not None:
        await resources.ledger.submit(found.strand, Close(found.session.id), at_ms=await resources.sandbox_ms(bot))
        found = await found_session(resources, principal, session_id)
    return JsonResponse(told(found))


async def found_session(resources: Resources, principal: Principal, session_id: str) -> ArchivedSession:
    """A session that exists and is of a bot that the key covers: the two are not to be told apart. Raises `NotFound`."""
    found = await reads_of(resources).find(_id(session_id))
    if found is None or not principal.covers(found.strand.bot):
        raise _no_session(session_id)
    return found


def bots_asked_for(resources: Resources, principal: Principal, bot: str | None) -> frozenset[str] | None:
    """The one bot that is named, a deleted one too, or all that the key covers (None: every one)."""
    if bot is None:
        return principal.key.bots
    if not principal.covers(bot) or resources.config.bot_or_deleted(bot) is None:
        raise no_bot(bot)
    return frozenset({bot})


def reads_of(resources: Resources) -> Sessions:
    return Sessions(live=resources.live, engine=resources.engine)


def _id(session_id: str) -> str:
    """What is no id is the id of nothing."""
    try:
        return str(UUID(session_id))
    except ValueError:
        raise _no_session(session_id) from None


def _no_session(session_id: str) -> NotFound:
    return NotFound(f"there is no session {session_id[:64]!r}")
