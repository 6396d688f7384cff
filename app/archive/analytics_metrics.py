"""Owns the definitions of all metrics and dimensions of the analytics: the one table that SQL, API and docs are made from.

A definition's SQL is over columns of `sessions`, named `s` there. Every metric but `sessions` is over sessions that count; what a
metric is over is its `over`. To add a metric: add a row here; tests fail until docs/metrics.md has its words.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

MetricKind = Literal["count", "ratio", "average", "spread"]
"""The shape of a metric's value: a whole number; a fraction with its percent; a sum over a count; mean and percentiles."""

EVERY = "TRUE"
COUNTED = "s.counted"
CONVERSED = "s.counted AND s.interactive"
CONTAINED = "s.contained"

_HAS_EARLIER = """EXISTS (SELECT FROM sessions e WHERE e.bot_id = s.bot_id AND e.user_id = s.user_id AND e.counted
    AND e.opened_at <= s.opened_at AND (e.opened_at, e.id) < (s.opened_at, s.id))"""


def _returned_within(hours: int) -> str:
    return f"""EXISTS (SELECT FROM sessions l WHERE l.bot_id = s.bot_id AND l.user_id = s.user_id AND l.id <> s.id
    AND l.counted AND l.interactive AND l.opened_at >= s.closed_at AND l.opened_at < s.closed_at + INTERVAL '{hours} hours')"""


_NOTHING = (0, 0, None, None, None)


_SUMS: Mapping[MetricKind, tuple[str, ...]] = {
    "count": ("",),
    "ratio": ("_part", "_whole"),
    "average": ("_sum", "_count"),
    "spread": ("_sum", "_count"),
}


class Metric(Struct, frozen=True, kw_only=True):
    """One metric.

    The SQL of `value` is by kind:

    count    an aggregate over the sessions in `over`
    ratio    a condition: how many of the sessions in `over` meet it
    average  a number of each session, summed over `over` and divided by their count
    spread   a number of each session or null; its mean and percentiles are over the sessions in `over` that have one
    """

    name: str
    kind: MetricKind
    unit: str
    definition: str
    over: str
    value: str
    # Filters of `GET /v1/sessions` that list the sessions of a group that the number is about; None where no list can show them.
    listed_by: Mapping[str, str] | None
    # Whether the numbers of hours add up to that of a day, and only a change of a session of the hour changes them.
    adds_up: bool = True

    @property
    def sums(self) -> dict[str, str]:
        """Column of the roll-up to the SQL of its number, of a metric that adds up; of a spread without its distribution."""
        names = _SUMS[self.kind]
        return {f"{self.name}{name}": sql for name, sql in zip(names, self.aggregates[: len(names)], strict=True)}

    @property
    def aggregates(self) -> tuple[str, ...]:
        """SQL of the numbers that the value is made from, in the order that `fields` names them."""
        over, value = self.over, self.value
        within = f"FILTER (WHERE {over})"
        match self.kind:
            case "count":
                return (f"coalesce({value} {within}, 0)",)
            case "ratio":
                return (f"count(*) FILTER (WHERE ({over}) AND {value})", f"count(*) {within}")
            case "average":
                return (f"coalesce(sum({value}) {within}, 0)", f"count(*) {within}")
            case "spread":
                middle = [f"percentile_disc({at}) WITHIN GROUP (ORDER BY {value}) {within}" for at in ("0.5", "0.9", "0.99")]
                return (f"coalesce(sum({value}) {within}, 0)", f"count({value}) {within}", *middle)

    def of(self, numbers: tuple[int | None, ...]) -> dict[str, int | float | None]:
        """The value as JSON, from what `aggregates` came to; from no numbers for a group without sessions."""
        total, count, p50, p90, p99 = (*numbers, *_NOTHING[len(numbers) :])
        total, count = total or 0, count or 0
        match self.kind:
            case "count":
                return {"value": total}
            case "ratio":
                return {"part": total, "whole": count, "percent": total * 100 // count if count else None}
            case "average":
                return {"sum": total, "count": count, "mean": total * 100 // count / 100 if count else None}
            case "spread":
                mean = total // count if count else None
                return {"sum": total, "count": count, "mean": mean, "p50": p50, "p90": p90, "p99": p99}


def _outcome(name: str, outcome: str, definition: str) -> Metric:
    listed = {"counted": "true", "interactive": "true", "outcome": outcome}
    return _ratio(name, definition, f"s.outcome = '{outcome}'", listed)


def _ratio(name: str, definition: str, value: str, listed: Mapping[str, str] | None) -> Metric:
    # Without a list: it is about other sessions of the user, too.
    return Metric(
        name=name,
        kind="ratio",
        unit="sessions",
        definition=definition,
        over=CONVERSED,
        value=value,
        listed_by=listed,
        adds_up=listed is not None,
    )


def _count(name: str, unit: str, definition: str, value: str) -> Metric:
    return Metric(
        name=name,
        kind="count",
        unit=unit,
        definition=definition,
        over=COUNTED,
        value=value,
        listed_by={"counted": "true"},
        adds_up="DISTINCT" not in value,
    )


def _spread(name: str, definition: str, value: str) -> Metric:
    return Metric(
        name=name, kind="spread", unit="ms", definition=definition, over=COUNTED, value=value, listed_by={"counted": "true"}
    )


_METRICS = (
    Metric(
        name="sessions",
        kind="count",
        unit="sessions",
        definition="Closed sessions, those included that the policy keeps without counting them.",
        over=EVERY,
        value="count(*)",
        listed_by={},
    ),
    _count("counted", "sessions", "Closed sessions that count: all but those that `requires_bot` leaves out.", "count(*)"),
    Metric(
        name="interactive",
        kind="ratio",
        unit="sessions",
        definition="Sessions with an entry by the user, of those that count.",
        over=COUNTED,
        value="s.interactive",
        listed_by={"counted": "true", "interactive": "true"},
    ),
    _count("conversations", "conversations", "Different conversations of a bot.",
           "count(DISTINCT (s.bot_id, s.conversation_id))"),
    _count("users", "users", "Different users of a bot.", "count(DISTINCT (s.bot_id, s.user_id))"),
    Metric(
        name="users_new",
        kind="count",
        unit="users",
        definition="Users whose first session with the bot, of all that the archive holds, is one of these.",
        over=f"s.counted AND NOT {_HAS_EARLIER}",
        value="count(*)",
        listed_by=None,
        adds_up=False,
    ),
    Metric(
        name="users_returning",
        kind="count",
        unit="users",
        definition="Users with a session here that is not their first with the bot; a new user who comes back is in both.",
        over=f"s.counted AND {_HAS_EARLIER}",
        value="count(DISTINCT (s.bot_id, s.user_id))",
        listed_by=None,
        adds_up=False,
    ),
    _count("interactions", "interactions", "Messages by user, bot and agents.", "sum(s.interactions)"),
    _count("entries", "entries", "Messages and events by everyone.", "sum(s.entries)"),
    _count("entries_user", "entries", "Messages and events by users.", "sum(s.user_entries)"),
    _count("entries_bot", "entries", "Messages and events by bots.", "sum(s.bot_entries)"),
    _count("entries_agent", "entries", "Messages and events by human agents.", "sum(s.agent_entries)"),
    _count("entries_system", "entries", "Events by the system.", "sum(s.system_entries)"),
    _count("billing_sessions", "billing sessions", "Started blocks of `billing_block_minutes` with user activity.",
           "sum(s.billing_sessions)"),
    _ratio("contained", "Closed without escalation or hand-off, and not abandoned, interrupted or dropped.", CONTAINED,
           {"counted": "true", "interactive": "true", "contained": "true"}),
    _outcome("escalated", "escalated", "Escalated: the bot or an agent reported it."),
    _outcome("handed_off", "handed_off", "Handed off to a human agent."),
    _outcome("resolved", "resolved", "Resolved: the bot or an agent reported it."),
    _outcome("dropped", "dropped", "Closed by silence with the user's message last, unanswered."),
    _outcome("abandoned", "abandoned", "Closed by `abandon_after_hours`, by `max_duration_hours` or by an interruption."),
    _spread("active_ms", "From the opening to the last entry that is no `activity`.", "s.active_ms"),
    _spread("idle_ms", "From that entry to the close.", "s.idle_ms"),
    _spread("first_response_ms", "From the user's first message to the first message by a bot or an agent after it.",
            "s.first_response_ms"),
    Metric(
        name="interactions_per_session",
        kind="average",
        unit="interactions",
        definition="Messages by user, bot and agents in a session. The mean has two decimals, cut and not rounded.",
        over=COUNTED,
        value="s.interactions",
        listed_by={"counted": "true"},
    ),
    _ratio("returned_24h", "The same user opened another interactive session with the bot within 24 h of the close.",
           _returned_within(24), None),
    _ratio("returned_7d", "The same user opened another interactive session with the bot within 7 days of the close.",
           _returned_within(168), None),
    _ratio("contained_24h", "Contained, and the user did not return within 24 h. Of later closes, not final.",
           f"{CONTAINED} AND NOT {_returned_within(24)}", None),
    _ratio("contained_7d", "Contained, and the user did not return within 7 days. Of later closes, not final.",
           f"{CONTAINED} AND NOT {_returned_within(168)}", None),
    _spread("close_lag_ms", "From the instant that a session was over to its row in the archive. Without sandbox bots.",
            "CASE WHEN s.bot_id NOT IN (SELECT id FROM bots WHERE sandbox) THEN "
            "floor(extract(epoch FROM s.archived_at - s.closed_at) * 1000)::bigint END"),
)  # fmt: skip

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _METRICS}
ADDING_UP = tuple(metric for metric in _METRICS if metric.adds_up)
SPREADS = tuple(metric for metric in ADDING_UP if metric.kind == "spread")
COUNTS = tuple(metric for metric in ADDING_UP if metric.kind != "spread")

OUTCOME_DIMENSIONS = ("reason", "outcome", "trade", "interactive", "contained")
"""Columns of `sessions` that say how a session went: one roll-up has them, and sums of `OUTCOME_METRICS`."""
OUTCOME_METRICS = (*COUNTS, METRICS["active_ms"])


class Dimension(Struct, frozen=True, kw_only=True):
    """A field that sessions are grouped by, beside time."""

    name: str
    definition: str
    column: str
    # The filter of `GET /v1/sessions` that takes a value of this dimension.
    listed_by: str


_DIMENSIONS = (
    Dimension(name="bot", definition="The bot.", column="bot_id", listed_by="bot"),
    Dimension(name="channel", definition="The channel.", column="channel", listed_by="channel"),
    Dimension(name="reason", definition="Why the session closed.", column="reason", listed_by="reason"),
    Dimension(name="outcome", definition="The outcome of the session.", column="outcome", listed_by="outcome"),
    Dimension(name="language", definition="The last language; null for none.", column="language", listed_by="language"),
    Dimension(name="intent", definition="The last intent; null for none.", column="intent", listed_by="intent"),
    Dimension(name="trade", definition="The party beside the user: `bot` or `agent`.", column="trade", listed_by="trade"),
    Dimension(
        name="policy_version",
        definition="The version of the policy that the session closed under.",
        column="policy_version",
        listed_by="policy_version",
    ),
    Dimension(
        name="interactive",
        definition="Whether the user took part.",
        column="interactive",
        listed_by="interactive",
    ),
)

DIMENSIONS: Mapping[str, Dimension] = {dimension.name: dimension for dimension in _DIMENSIONS}
