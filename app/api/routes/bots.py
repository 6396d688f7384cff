"""Bots: create, list, read, change, delete. A bot is born with version 1 of its policy."""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query, Response
from redis.exceptions import RedisError
from sqlalchemy import Row

from app.api.auth import Administering, no_bot
from app.api.dependencies import ResourcesDep
from app.api.saving import saving
from app.api.schemas.bots import BotChange, BotPage, BotView, NewBot
from app.api.schemas.common import Cursor, Limit
from app.api.schemas.problems import PROBLEMS
from app.archive import bots, policies
from app.archive.tables import instant
from app.closing.sweep import close_deleted_sandbox
from app.domain.errors import Fault
from app.domain.policy.parse import policy_from
from app.errors import AdjournError, Conflict, Invalid
from app.queries.cursor import cursor_of, page_of, place_of
from app.resources import Resources

router = APIRouter(prefix="/v1/bots", tags=["bots"], responses=PROBLEMS)

LIST = "bots"
_log = structlog.get_logger()


@router.post("", status_code=201)
async def create_bot(new: NewBot, resources: ResourcesDep, principal: Administering, response: Response) -> BotView:
    """Create a bot. Needs a key for all bots; a deleted bot's id is not given away again."""
    principal.require_all_bots()
    policy_from(new.policy)
    clock_mode = (new.clock_mode or "manual") if new.sandbox else None
    # A clock that follows its entries begins at zero, so that old records can be played.
    effective_at = instant(0 if clock_mode == "sent_at" else resources.clock.now_ms())
    async with saving(resources, principal) as change:
        row = await bots.create(change.conn, new.id, name=new.name or new.id, sandbox=new.sandbox, clock_mode=clock_mode)
        if row is None:
            raise Conflict(f"there is, or was, a bot {new.id!r}", hint="choose another id")
        await policies.add(change.conn, new.id, version=1, policy=new.policy, effective_at=effective_at, key_id=principal.key.id)
        await change.record("bot.created", new.id, bot=new.id, name=row.name, sandbox=row.sandbox)
    response.headers["Location"] = f"/v1/bots/{new.id}"
    return BotView.of(row)


@router.get("")
async def list_bots(
    resources: ResourcesDep,
    principal: Administering,
    limit: Annotated[Limit, Query()] = 50,
    cursor: Annotated[Cursor, Query()] = None,
) -> BotPage:
    """Bots by id: those that the key covers."""
    after = place_of(cursor, of=LIST, kind=str) or ""
    async with resources.engine.connect() as conn:
        rows = await bots.page(conn, only=principal.key.bots, after=after, limit=limit + 1)
    shown, last = page_of(rows, limit=limit)
    return BotPage(bots=[BotView.of(row) for row in shown], next=last and cursor_of(last.id, of=LIST))


@router.get("/{bot}")
async def read_bot(bot: str, resources: ResourcesDep, _: Administering) -> BotView:
    """One bot."""
    async with resources.engine.connect() as conn:
        return BotView.of(found_bot(await bots.find(conn, bot), bot))


@router.patch("/{bot}")
async def change_bot(bot: str, wanted: BotChange, resources: ResourcesDep, principal: Administering) -> BotView:
    """Change a bot's name, or how a sandbox bot's clock moves."""
    changes = wanted.model_dump(exclude_none=True)
    async with saving(resources, principal) as change:
        row = found_bot(await bots.find(change.conn, bot), bot)
        if wanted.clock_mode is not None and not row.sandbox:
            fault = Fault("clock_mode", "this bot goes by real time", "leave it out")
            raise Invalid("only a sandbox bot has a clock of its own", faults=(fault,))
        row = found_bot(await bots.change(change.conn, bot, changes), bot)
        await change.record("bot.changed", bot, bot=bot, **changes)
    return BotView.of(row)


@router.delete("/{bot}", status_code=204)
async def delete_bot(bot: str, resources: ResourcesDep, principal: Administering) -> None:
    """Delete a bot: it takes no more entries, its open sessions close on time, its closed ones stay readable.

    Its endpoints go with it, so nobody is told. A sandbox bot's clock runs out, and its open sessions close now.
    """
    async with saving(resources, principal) as change:
        row = found_bot(await bots.delete(change.conn, bot), bot)
        await change.record("bot.deleted", bot, bot=bot)
    if row.sandbox:
        await _close_sandbox(resources, bot)


async def _close_sandbox(resources: Resources, bot: str) -> None:
    try:
        await close_deleted_sandbox(bot, clocks=resources.sandboxes, sweep=resources.sweep)
    except (RedisError, AdjournError) as error:  # the bot is deleted all the same, and a worker does this again
        _log.warning("deleted_bot.sessions_still_open", bot=bot, error=str(error))


def found_bot(row: Row[Any] | None, bot: str) -> Row[Any]:
    if row is None:
        raise no_bot(bot)
    return row
