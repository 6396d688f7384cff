"""Bots: create, list, read, change, delete. A bot is created with version 1 of its policy."""

from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator
from redis.exceptions import RedisError
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import AdminEngineDep, Administering, ChangingDep, ClockDep, SandboxesDep, SettingsDep, SweepDep, found
from app.api.fields import (
    ABOUT_NAME,
    Body,
    BotPath,
    Instant,
    LimitOverrides,
    Name,
    PolicyToSave,
    SlugText,
    limit,
    valid_policy,
)
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers, refuses
from app.archive import bots
from app.archive.retention import SHORTEST_DAYS
from app.archive.tables import instant
from app.closing.sweep import Sweep, close_deleted_sandbox
from app.domain.errors import Fault
from app.domain.instants import ms_of, rfc3339
from app.errors import AdjournError, Conflict, Invalid
from app.ingest.limits import over_quota
from app.live.sandbox import ClockMode, SandboxClocks

router = APIRouter(prefix="/v1/bots", tags=["bots"])

_log = structlog.get_logger()

_Id = Annotated[SlugText, Field(description="Id of the bot; never given to another bot.", examples=["shop"])]
_Sandbox = Annotated[bool, Field(description="Whether the bot has a clock of its own, for tests.")]
_ClockMode = Annotated[
    ClockMode | None,
    Field(
        description="How a sandbox bot's clock moves: `manual` by `POST …/clock/advance` alone, `sent_at` by its entries, too."
    ),
]


_DAYS = Field(ge=SHORTEST_DAYS, le=36_500, examples=[365])


class RetentionDays(Body):
    """For how many days a bot's data is kept; null: without end. Messages and deliveries go with their session at the latest."""

    sessions: Annotated[int | None, _DAYS, Field(description="Closed sessions, from their close on.")] = None
    messages: Annotated[int | None, _DAYS, Field(description="Messages, from the close of their session on.")] = None
    deliveries: Annotated[
        int | None, _DAYS, Field(description="Webhooks that are not pending. Others go after 30 days, dead letters after 90.")
    ] = None


_RETENTION = Field(description="For how many days its sessions, messages and deliveries are kept.")


class BotLimitOverrides(LimitOverrides):
    """Limits of a bot in place of those of the settings; null, or left out: the setting's."""

    rate_entries: Annotated[int | None, limit("rate_entries")] = None
    rate_bytes: Annotated[int | None, limit("rate_bytes")] = None
    max_open_sessions: Annotated[int | None, limit("max_open_sessions")] = None
    max_endpoints: Annotated[int | None, limit("max_endpoints")] = None
    session_max_entries: Annotated[int | None, limit("session_max_entries")] = None
    session_max_bytes: Annotated[int | None, limit("session_max_bytes")] = None


_LIMITS = Field(description="Its own limits. Only a key for all bots may set them.")


class NewBot(Body):
    """A bot to create."""

    id: _Id
    name: Annotated[Name | None, Field(description="For people; the id if left out.", examples=["Shop"])] = None
    sandbox: _Sandbox = False
    clock_mode: _ClockMode = None
    retention_days: Annotated[RetentionDays, _RETENTION] = RetentionDays()
    limits: Annotated[BotLimitOverrides, _LIMITS] = BotLimitOverrides()
    policy: Annotated[
        PolicyToSave, AfterValidator(valid_policy), Field(description="Version 1 of the policy; the defaults if left out.")
    ] = Field(default_factory=dict)

    @field_validator("clock_mode")
    @classmethod
    def _only_a_sandbox_has_a_clock(cls, clock_mode: ClockMode | None, info: ValidationInfo) -> ClockMode | None:
        if clock_mode is not None and info.data.get("sandbox") is False:
            raise ValueError("it is for sandbox bots: set `sandbox` too, or leave it out")
        return clock_mode


class BotChange(Body):
    """Fields to change; a field that is left out stays as it is. `sandbox` cannot be changed."""

    name: Annotated[Name | None, ABOUT_NAME] = None
    clock_mode: _ClockMode = None
    retention_days: Annotated[
        RetentionDays | None, Field(description="All three of them anew: what is left out is kept without end.")
    ] = None
    limits: Annotated[
        BotLimitOverrides | None,
        Field(description="All of them anew: what is left out is as the settings say. Only a key for all bots may set them."),
    ] = None


class BotView(BaseModel):
    """A bot."""

    id: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    name: Annotated[str, Field(description="For people.", examples=["Shop"])]
    sandbox: _Sandbox
    clock_mode: _ClockMode
    retention_days: Annotated[RetentionDays, _RETENTION]
    limits: Annotated[BotLimitOverrides, _LIMITS]
    created_at: Annotated[Instant, Field(description="When it was created.")]
    updated_at: Annotated[Instant, Field(description="When one of these fields was changed last.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "BotView":
        return cls(
            id=row.id,
            name=row.name,
            sandbox=row.sandbox,
            clock_mode=row.clock_mode,
            retention_days=RetentionDays(**row.retention_days),
            limits=BotLimitOverrides(**row.limits),
            created_at=rfc3339(ms_of(row.created_at)),
            updated_at=rfc3339(ms_of(row.updated_at)),
        )


class BotPage(BaseModel):
    """Bots by id."""

    bots: Annotated[list[BotView], Field(description="The bots of this page.")]
    next: Next


@router.post("", status_code=201, responses=refuses(Conflict))
async def create_bot(
    new: NewBot, clock: ClockDep, changing: ChangingDep, settings: SettingsDep, *, principal: Administering, response: Response
) -> BotView:
    """Create a bot. Needs a key for all bots; the id of a deleted bot is not given away again."""
    principal.require_all_bots()
    clock_mode = (new.clock_mode or "manual") if new.sandbox else None
    # A clock that follows its entries begins at zero, so that old records can be played.
    effective_at = instant(0 if clock_mode == "sent_at" else clock.now_ms())
    async with changing(principal) as change:
        if await bots.count(change.conn) >= settings.max_bots:
            raise over_quota("max_bots", settings.max_bots, "bots")
        row = await bots.create(
            change.conn,
            new.id,
            name=new.name or new.id,
            sandbox=new.sandbox,
            clock_mode=clock_mode,
            retention_days=new.retention_days.model_dump(),
            limits=new.limits.stored(),
        )
        if row is None:
            raise Conflict(f"there is, or was, a bot {new.id!r}", hint="choose another id")
        await bots.add_policy(
            change.conn, new.id, version=1, policy=new.policy, effective_at=effective_at, key_id=principal.key.id
        )
        await change.record("bot.created", new.id, bot=new.id, after=_audited(row) | {"policy": new.policy})
    response.headers["Location"] = f"/v1/bots/{new.id}"
    return BotView.of(row)


@router.get("", **answers(BotPage))
async def list_bots(engine: AdminEngineDep, principal: Administering, asked: Paged) -> JsonResponse:
    """Bots by id: those that the key covers."""
    page = Page(asked, of="bots", place=str)
    async with engine.connect() as conn:
        rows = await bots.page(conn, only=principal.key.bots, after=page.after or "", limit=page.probe)
    shown, following = page.fit(rows, lambda row: str(row.id), BotView.of)
    return JsonResponse({"bots": shown, "next": following})


@router.get("/{bot}")
async def read_bot(bot: BotPath, engine: AdminEngineDep, _: Administering) -> BotView:
    """One bot."""
    async with engine.connect() as conn:
        return BotView.of(await bot_row(conn, bot))


@router.patch("/{bot}")
async def change_bot(bot: BotPath, wanted: BotChange, changing: ChangingDep, principal: Administering) -> BotView:
    """Change a bot's name, its limits, the retention of its data, or how a sandbox bot's clock moves."""
    if wanted.limits is not None:
        principal.require_all_bots()
    changes = {name: value for name, value in wanted.model_dump(exclude={"limits"}).items() if value is not None}
    if wanted.limits is not None:
        changes["limits"] = wanted.limits.stored()
    async with changing(principal) as change:
        before = await bot_row(change.conn, bot)
        if wanted.clock_mode is not None and not before.sandbox:
            fault = Fault("clock_mode", "this bot goes by real time", "leave it out")
            raise Invalid("only a sandbox bot has a clock of its own", faults=(fault,))
        row = found(await bots.change(change.conn, bot, changes), "bot", bot)
        await change.record("bot.changed", bot, bot=bot, before=_audited(before), after=_audited(row))
    return BotView.of(row)


@router.delete("/{bot}", status_code=204)
async def delete_bot(
    bot: BotPath, changing: ChangingDep, sandboxes: SandboxesDep, sweep: SweepDep, *, principal: Administering
) -> None:
    """Delete a bot: it takes no more entries, its open sessions close on time, its closed sessions stay readable.

    Its endpoints are deleted too, so no more webhooks are sent. A sandbox bot's open sessions close at once.
    """
    async with changing(principal) as change:
        row = found(await bots.delete(change.conn, bot), "bot", bot)
        await change.record("bot.deleted", bot, bot=bot, before=_audited(row))
    if row.sandbox:
        await _close_sandbox(bot, sandboxes, sweep)


async def bot_row(conn: AsyncConnection, bot: str) -> Row[Any]:
    """The row of a bot that is not deleted. Raise `NotFound`."""
    return found(await bots.find(conn, bot), "bot", bot)


def _audited(row: Row[Any]) -> dict[str, Any]:
    """The fields of a bot that an admin chooses."""
    return BotView.of(row).model_dump(exclude={"id", "created_at", "updated_at"})


async def _close_sandbox(bot: str, sandboxes: SandboxClocks, sweep: Sweep) -> None:
    try:
        await close_deleted_sandbox(bot, clocks=sandboxes, sweep=sweep)
    except (RedisError, AdjournError) as error:  # the bot is deleted all the same, and a worker closes its sessions later
        _log.warning("sessions of a deleted bot are still open", bot=bot, error=str(error))
