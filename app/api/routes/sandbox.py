"""A sandbox bot's clock: read it, move it forward."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from app.api.auth import Ingesting, known_bot
from app.config.records import BotConfig
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict
from app.live.sandbox import forward_target_ms
from app.resources import Resources

router = APIRouter(prefix="/v1/bots/{bot}/clock", tags=["sandbox"])

_YEAR_S = 366 * 86_400


class Advance(BaseModel):
    """Either `seconds` to move by, or the instant `to` to move to."""

    model_config = ConfigDict(extra="forbid")

    seconds: Annotated[float, Field(ge=0, le=_YEAR_S)] | None = None
    to: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Advance":
        if (self.seconds is None) == (self.to is None):
            raise ValueError("give either `seconds` or `to`")
        return self


class ClockView(BaseModel):
    """Where the clock stands, and how many conversations were due on the way there."""

    now: str
    due: int = 0


@router.get("")
async def read_clock(bot: str, request: Request, _: Ingesting) -> ClockView:
    """Where a sandbox bot's clock stands."""
    resources: Resources = request.app.state.resources
    return ClockView(now=rfc3339(await _stands_ms(resources, _sandbox(resources, bot))))


@router.post("/advance")
async def advance_clock(bot: str, advance: Advance, request: Request, _: Ingesting) -> ClockView:
    """Move a sandbox bot's clock forward. When this returns, everything that was due on the way is closed."""
    resources: Resources = request.app.state.resources
    known = _sandbox(resources, bot)
    target_ms = forward_target_ms(
        await _stands_ms(resources, known),
        by_ms=None if advance.seconds is None else round(advance.seconds * 1000),
        to_ms=None if advance.to is None else ms_of(advance.to),
        real_ms=resources.clock.now_ms(),
    )
    now_ms = await resources.sandboxes.forward(bot, to_ms=target_ms)
    return ClockView(now=rfc3339(now_ms), due=await resources.sweep.run_bot(bot, now_ms))


async def _stands_ms(resources: Resources, bot: BotConfig) -> int:
    stands_ms = await resources.sandbox_ms(bot)
    return resources.clock.now_ms() if stands_ms is None else stands_ms


def _sandbox(resources: Resources, name: str) -> BotConfig:
    bot = known_bot(resources.config, name)
    if not bot.sandbox:
        raise Conflict("this bot goes by real time", hint="only a bot created with `sandbox: true` has a clock of its own")
    return bot
