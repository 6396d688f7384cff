"""Bots as the API takes and tells them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator
from sqlalchemy import Row

from app.api.schemas.common import Body, Name, Next, Slug
from app.api.schemas.policies import PolicyToSave
from app.domain.instants import ms_of, rfc3339

ClockMode = Literal["manual", "sent_at"]
_CLOCK = "How a sandbox bot's clock moves: `manual` by `POST …/clock/advance` alone, `sent_at` by its entries, too."


class NewBot(Body):
    """`policy` is as in `PUT …/policy`; without it the defaults hold. A sandbox bot has a clock of its own."""

    id: Slug
    name: Name | None = None
    sandbox: bool = False
    clock_mode: Annotated[ClockMode | None, Field(description=_CLOCK)] = None
    policy: PolicyToSave = Field(default_factory=dict)

    @model_validator(mode="after")
    def _clock_of_a_sandbox(self) -> "NewBot":
        if self.clock_mode is not None and not self.sandbox:
            raise ValueError("`clock_mode` is for sandbox bots: set `sandbox` too, or leave it out")
        return self


class BotChange(Body):
    """What is left out stays as it is. Whether a bot is a sandbox cannot be changed."""

    name: Name | None = None
    clock_mode: Annotated[ClockMode | None, Field(description=_CLOCK)] = None


class BotView(BaseModel):
    """A bot."""

    id: str
    name: str
    sandbox: bool
    clock_mode: ClockMode | None
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, row: Row[Any]) -> "BotView":
        return cls(
            id=row.id,
            name=row.name,
            sandbox=row.sandbox,
            clock_mode=row.clock_mode,
            created_at=rfc3339(ms_of(row.created_at)),
            updated_at=rfc3339(ms_of(row.updated_at)),
        )


class BotPage(BaseModel):
    """Bots by id."""

    bots: list[BotView]
    next: Next
