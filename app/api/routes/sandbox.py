"""A sandbox bot's clock: read it, move it forward."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field, ValidationInfo, field_validator

from app.api.auth import ClockDep, ConfigDep, EngineDep, Ingesting, OwnTimeDep, SandboxesDep, SweepDep, known_bot
from app.api.fields import Body, BotPath, GivenInstant, Instant
from app.api.responses import refuses
from app.archive import audit
from app.config.follower import ConfigReplica
from app.config.records import BotConfig
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict
from app.live.sandbox import forward_target_ms

router = APIRouter(prefix="/v1/bots/{bot}/clock", tags=["sandbox"])

_YEAR_S = 366 * 86_400


class ClockAdvance(Body):
    """How far to move the clock: by `seconds`, or to the instant `to`."""

    seconds: Annotated[float | None, Field(ge=0, le=_YEAR_S, description="How far to move it, in s.", examples=[900])] = None
    to: Annotated[GivenInstant | None, Field(description="The instant to move it to.", validate_default=True)] = None

    # Of a field, not of the model, so that it is reported with the faults of other fields. One that is faulty is not in `data`.
    @field_validator("to")
    @classmethod
    def _one_of_them(cls, to: datetime | None, fields: ValidationInfo) -> datetime | None:
        if "seconds" in fields.data and (fields.data["seconds"] is None) == (to is None):
            raise ValueError("give either `seconds` or `to`")
        return to


class ClockView(BaseModel):
    """A sandbox bot's clock."""

    now: Annotated[Instant, Field(description="The instant that the clock shows.")]
    due: Annotated[int, Field(description="How many conversations were due while it moved.", examples=[2])] = 0


async def _shown_ms(bot: BotPath, config: ConfigDep, clock: ClockDep, own_time: OwnTimeDep) -> int:
    now_ms = await own_time(_sandbox(config, bot))
    return clock.now_ms() if now_ms is None else now_ms


ShownDep = Annotated[int, Depends(_shown_ms)]
"""The instant that the clock shows, in ms."""


# Each route asks for the key before the clock, so that a key without the scope learns nothing.
@router.get("", responses=refuses(Conflict))
async def read_clock(_: Ingesting, shown_ms: ShownDep) -> ClockView:
    """The instant that a sandbox bot's clock shows."""
    return ClockView(now=rfc3339(shown_ms))


@router.post("/advance", responses=refuses(Conflict))
async def advance_clock(
    principal: Ingesting,
    bot: BotPath,
    shown_ms: ShownDep,
    advance: ClockAdvance,
    *,
    clock: ClockDep,
    sandboxes: SandboxesDep,
    sweep: SweepDep,
    engine: EngineDep,
) -> ClockView:
    """Move a sandbox bot's clock forward. Everything that was due on the way is closed when this returns."""
    target_ms = forward_target_ms(
        shown_ms,
        by_ms=None if advance.seconds is None else round(advance.seconds * 1000),
        to_ms=None if advance.to is None else ms_of(advance.to),
        real_ms=clock.now_ms(),
    )
    async with engine.begin() as conn:
        now_ms = await sandboxes.forward(bot, to_ms=target_ms)
        before, after = {"now": rfc3339(shown_ms)}, {"now": rfc3339(now_ms)}
        await audit.record(conn, principal.actor, "clock.advanced", bot, bot=bot, before=before, after=after)
    return ClockView(now=rfc3339(now_ms), due=await sweep.run_bot(bot, now_ms))


def _sandbox(config: ConfigReplica, name: str) -> BotConfig:
    bot = known_bot(config, name)
    if not bot.sandbox:
        raise Conflict("this bot goes by real time", hint="only a bot created with `sandbox: true` has a clock of its own")
    return bot
