"""A bot's sessions added up, as the API is asked for them and tells them."""

from typing import Annotated

from pydantic import BaseModel, Field

from app.api.schemas.common import Slug
from app.api.schemas.sessions import When
from app.archive.session_reads import SessionFilter
from app.archive.summary import SessionSummary
from app.domain.instants import ms_of
from app.domain.ratio import Ratio


class SummaryQuery(BaseModel):
    """Which closed sessions. An instant `…_from` is included, one `…_to` is not."""

    channel: Slug | None = None
    opened_from: When = None
    opened_to: When = None
    developers: Annotated[bool, Field(description="Count the sessions in which a developer took part, too.")] = False

    def filter(self, bot: str) -> SessionFilter:
        return SessionFilter(
            bots=frozenset({bot}),
            channel=self.channel,
            developer=None if self.developers else False,
            opened_from_ms=None if self.opened_from is None else ms_of(self.opened_from),
            opened_to_ms=None if self.opened_to is None else ms_of(self.opened_to),
        )


class RatioView(BaseModel):
    """An exact fraction, and its whole percent, cut and not rounded: 2 of 3 is 66. Null where there is nothing."""

    part: int
    whole: int
    percent: int | None

    @classmethod
    def of(cls, share: Ratio) -> "RatioView":
        return cls(part=share.part, whole=share.whole, percent=share.percent)


class SummaryView(BaseModel):
    """Sums over the closed sessions that count. `contained`: how many went without escalation or hand-off."""

    sessions: int
    not_counted: Annotated[int, Field(description="Kept, but left out of all the rest: the policy's `requires_bot`.")]
    interactive: int
    billing_sessions: int
    interactions: int
    contained: RatioView
    by_outcome: dict[str, int]
    by_reason: dict[str, int]
    by_trade: dict[str, int]

    @classmethod
    def of(cls, summary: SessionSummary) -> "SummaryView":
        return cls(
            sessions=summary.sessions,
            not_counted=summary.not_counted,
            interactive=summary.interactive,
            billing_sessions=summary.billing_sessions,
            interactions=summary.interactions,
            contained=RatioView.of(summary.contained),
            by_outcome=summary.by_outcome,
            by_reason=summary.by_reason,
            by_trade=summary.by_trade,
        )
