"""Analytics: metrics of closed sessions by time and dimensions, what they mean, and one history under several definitions.

Metrics and dimensions are those of `app.archive.analytics_metrics`; their names here are derived from it.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from msgspec import structs
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.api.auth import ClockDep, ConfigDep, Principal, ReadEngineDep, Reading, known_bot
from app.api.fields import GivenInstant, Instant, SlugText
from app.api.responses import JsonResponse, answers
from app.api.routes.sessions import FilterQuery, RatioView
from app.archive.analytics_metrics import DIMENSIONS, METRICS, MetricKind
from app.archive.session_reads import SessionFilter
from app.config.follower import ConfigReplica
from app.domain.errors import Fault
from app.domain.instants import ms_of
from app.errors import Invalid
from app.queries.analytics import MOST_GROUPS, TIME_DIMENSIONS, ListAddress, Period, Question, answer, answer_paths, compare

router = APIRouter(prefix="/v1/analytics", tags=["analytics"])

USUAL_DAYS = 30
MOST_DIMENSIONS = 3
MOST_STEPS = 16
_LISTS = "/v1/sessions"
_GROUPS = (*TIME_DIMENSIONS, *DIMENSIONS)


def _split(given: Any) -> Any:  # noqa: ANN401 - as pydantic hands it on
    """`a,b` is `a` and `b`, as the parameter given twice is."""
    return [part for value in given for part in value.split(",")] if isinstance(given, list) else given


def _each_of(known: tuple[str, ...]) -> BeforeValidator:
    """Some of these names, no one twice."""

    def check(given: Any) -> Any:  # noqa: ANN401 - as above
        names = _split(given)
        if isinstance(names, list) and (set(names) - set(known) or len(set(names)) < len(names)):
            raise PydanticCustomError("literal_error", "it has an unknown name, or one twice", {"expected": ", ".join(known)})
        return names

    return BeforeValidator(check)


def _list_of(known: tuple[str, ...], *, such_as: list[str]) -> WithJsonSchema:
    return WithJsonSchema(
        {"type": "array", "items": {"type": "string", "enum": list(known)}, "uniqueItems": True, "examples": [such_as]}
    )


MetricNames = Annotated[list[str], _each_of(tuple(METRICS)), _list_of(tuple(METRICS), such_as=["sessions", "contained"])]
GroupNames = Annotated[list[str], _each_of(_GROUPS), _list_of(_GROUPS, such_as=["day", "channel"])]

_From = Annotated[
    GivenInstant | None,
    Field(alias="from", description=f"Sessions opened at or after this instant; {USUAL_DAYS} days before `to` if left out."),
]
_To = Annotated[GivenInstant | None, Field(alias="to", description="Sessions opened before this instant; now if left out.")]


class PeriodQuery(BaseModel):
    """From when to when."""

    start: _From = None
    end: _To = None

    def period(self, now_ms: int) -> Period:
        """The period; its end is now unless it is given. Raise `Invalid` if it ends before it begins."""
        end = self.end or datetime.fromtimestamp(now_ms / 1000, UTC)
        try:
            start = self.start or end - timedelta(days=USUAL_DAYS)
            period = Period(start.astimezone(UTC), end.astimezone(UTC))
        except OverflowError:
            period = None
        if period is None or period.start >= period.end:
            raise Invalid("the period is not valid", faults=(Fault("from", "it is not before `to`", "an earlier instant"),))
        return period


class AnalyticsQuery(PeriodQuery, FilterQuery):
    """Which metrics of which closed sessions, and in which groups."""

    metrics: Annotated[MetricNames, Field(description="Metrics, separated by commas or repeated.")] = ["sessions"]
    group_by: Annotated[
        GroupNames,
        Field(description=f"At most one group by time and {MOST_DIMENSIONS} dimensions, separated by commas or repeated."),
    ] = []
    time_zone: Annotated[
        str,
        Field(max_length=64, description="IANA name of the time zone of groups by time.", examples=["Europe/Berlin"]),
    ] = "UTC"
    top: Annotated[
        int, Field(ge=1, le=100, description="Keys with groups of their own: those with the most sessions.", examples=[10])
    ] = 10
    compare: Annotated[Literal["previous"] | None, Field(description="Add the numbers of the period before.")] = None
    developers: Annotated[bool, Field(description="Add sessions in which a developer took part, too.")] = False


_Step = Annotated[str, Field(min_length=1, max_length=256)]


class PathsQuery(PeriodQuery, FilterQuery):
    """Which paths of which closed sessions."""

    steps: Annotated[
        list[_Step],
        Field(max_length=MOST_STEPS, description="Intents of a funnel, in order, repeated.", examples=[["order.status", "pay"]]),
    ] = []
    depth: Annotated[int, Field(ge=1, le=32, description="Intents of a path at most: the first ones.", examples=[3])] = 3
    with_outcome: Annotated[bool, Field(description="End each path with the session's outcome.")] = False
    top: Annotated[int, Field(ge=1, le=100, description="Paths at most: those that most sessions took.", examples=[10])] = 10
    developers: Annotated[bool, Field(description="Add sessions in which a developer took part, too.")] = False


class ComparisonQuery(PeriodQuery):
    """Which sessions to count again."""

    bot: Annotated[SlugText, Field(description="Of this bot.", examples=["shop"])]


_Url = Annotated[
    str | None,
    Field(
        description="Path of the list of the sessions that the number is about; null where no list can show them.",
        examples=["/v1/sessions?bot=shop&counted=true"],
    ),
]


class CountValue(BaseModel):
    """A whole number."""

    value: Annotated[int, Field(description="The number.", examples=[3])]
    sessions_url: _Url


class RatioValue(RatioView):
    """A fraction of sessions."""

    sessions_url: _Url


class AverageValue(BaseModel):
    """A sum over a count."""

    sum: Annotated[int, Field(description="Sum over the sessions.", examples=[7])]
    count: Annotated[int, Field(description="Sessions.", examples=[3])]
    mean: Annotated[float | None, Field(description="With two decimals, cut; null of nothing.", examples=[2.33])]
    sessions_url: _Url


class SpreadValue(BaseModel):
    """Mean and percentiles, in ms. All exact; null of nothing."""

    count: Annotated[int, Field(description="Sessions that have the value.", examples=[3])]
    sum: Annotated[int, Field(description="Their sum, in ms.", examples=[6000])]
    mean: Annotated[int | None, Field(description="Cut to whole ms.", examples=[2000])]
    p50: Annotated[int | None, Field(description="Half of them are at most this.", examples=[1500])]
    p90: Annotated[int | None, Field(description="Nine tenths of them are at most this.", examples=[3500])]
    p99: Annotated[int | None, Field(description="99 of 100 are at most this.", examples=[3500])]
    sessions_url: _Url


Values = dict[str, CountValue | RatioValue | AverageValue | SpreadValue]
_EXAMPLE_VALUES = [{"sessions": {"value": 3, "sessions_url": None}}]


class GroupView(BaseModel):
    """The numbers of one group."""

    key: Annotated[
        dict[str, str | int | bool | None],
        Field(description="Value of each name in `group_by`; null for none, and in `other`.", examples=[{"channel": "web"}]),
    ]
    other: Annotated[bool, Field(description="Whether it is the group of all keys beyond the `top` ones.")]
    start: Annotated[Instant | None, Field(alias="from", description="Begin of its time; null for an hour of the week.")]
    end: Annotated[Instant | None, Field(alias="to", description="End of its time, not included; null for an hour of the week.")]
    metrics: Annotated[Values, Field(description="Value of each metric by its name.", examples=_EXAMPLE_VALUES)]
    previous: Annotated[
        Values | None, Field(description="The same of the period before, with `compare=previous`.", examples=_EXAMPLE_VALUES)
    ] = None


class PeriodView(BaseModel):
    """A period; its end is not included."""

    start: Annotated[Instant, Field(alias="from", description="Its begin.")]
    end: Annotated[Instant, Field(alias="to", description="Its end.")]


class AnalyticsView(PeriodView):
    """Metrics of closed sessions by group."""

    time_zone: Annotated[str, Field(description="Time zone of the groups by time.", examples=["Europe/Berlin"])]
    group_by: Annotated[list[str], Field(description="The buckets and dimensions of its groups.", examples=[["day", "channel"]])]
    previous: Annotated[PeriodView | None, Field(description="The period before, with `compare=previous`.")]
    percentile_error_percent: Annotated[
        int, Field(description="How far percentiles may be off: 0 if all are exact. All other numbers are exact.", examples=[0])
    ]
    groups: Annotated[list[GroupView], Field(description=f"At most {MOST_GROUPS}, in the order of time and of size.")]


class PathView(BaseModel):
    """One path."""

    path: Annotated[list[str], Field(description="Intents in order; empty for none.", examples=[["order.status", "pay"]])]
    share: Annotated[RatioView, Field(description="Sessions that took it, of all.")]
    contained: Annotated[RatioView, Field(description="Contained sessions, of those.")]


class StepView(BaseModel):
    """One step of the funnel."""

    intent: Annotated[str, Field(description="Its intent.", examples=["pay"])]
    share: Annotated[RatioView, Field(description="Sessions that came to it after the steps before, of all.")]


class PathsView(PeriodView):
    """Paths of the sessions that count and in which the user took part."""

    sessions: Annotated[int, Field(description="Sessions in all.", examples=[3])]
    paths: Annotated[list[PathView], Field(description="The paths that most of them took.")]
    other: Annotated[int, Field(description="Sessions that took other paths.", examples=[0])]
    steps: Annotated[list[StepView], Field(description="The funnel.")]


class MetricView(BaseModel):
    """A metric and its definition."""

    name: Annotated[str, Field(description="Its name in `metrics`.", examples=["contained"])]
    kind: Annotated[MetricKind, Field(description="The shape of its value.")]
    unit: Annotated[str, Field(description="The things that it counts.", examples=["sessions"])]
    definition: Annotated[str, Field(description="The meaning in a sentence.", examples=["Closed sessions."])]
    sql: Annotated[list[str], Field(description="The SQL of its numbers over `sessions s`.", examples=[["count(*)"]])]


class DimensionView(BaseModel):
    """A dimension and its definition."""

    name: Annotated[str, Field(description="Its name in `group_by`.", examples=["channel"])]
    definition: Annotated[str, Field(description="The meaning in a sentence.", examples=["The channel."])]


class DefinitionsView(BaseModel):
    """Every metric and dimension."""

    metrics: Annotated[list[MetricView], Field(description="The metrics.")]
    dimensions: Annotated[list[DimensionView], Field(description="The dimensions.")]
    times: Annotated[list[str], Field(description="The groups by time.", examples=[["hour", "day"]])]


class SettingView(BaseModel):
    """A setting of the policy that two definitions give different values."""

    theirs: Annotated[Any, Field(description="The definition's value.", examples=[5])]
    own: Annotated[Any, Field(description="The bot's value.", examples=[15])]


class DifferenceView(BaseModel):
    """Sessions that a definition has more and fewer than the bot's own policy, for one reason on one channel."""

    reason: Annotated[
        str,
        Field(
            description="Why the session before closed; `opened` if it is the first, `not_counted` by `requires_bot`.",
            examples=["inactivity"],
        ),
    ]
    channel: Annotated[str, Field(description="The channel.", examples=["web"])]
    more: Annotated[int, Field(description="Sessions that only the definition counts.", examples=[1])]
    fewer: Annotated[int, Field(description="Sessions that only the bot's own policy counts.", examples=[0])]
    settings: Annotated[
        dict[str, SettingView],
        Field(description="The settings that make the difference.", examples=[{"inactivity_minutes": {"theirs": 5, "own": 15}}]),
    ]


class DefinitionCount(BaseModel):
    """One definition's count."""

    definition: Annotated[Literal["own", "kore", "botanalytics", "reamaze", "aivo"], Field(description="Whose definition.")]
    sessions: Annotated[int, Field(description="Sessions that count.", examples=[3])]
    interactive: Annotated[int, Field(description="Sessions in which the user took part.", examples=[3])]
    interactions: Annotated[int, Field(description="Messages by user, bot and agents in them.", examples=[4])]
    billing_sessions: Annotated[int, Field(description="Billing sessions.", examples=[3])]
    contained: Annotated[RatioView, Field(description="Contained sessions, of the interactive ones.")]
    refused_entries: Annotated[int, Field(description="Entries that the policy cannot place.", examples=[0])]
    difference: Annotated[int, Field(description="Sessions more than by the bot's own policy.", examples=[1])]
    reasons: Annotated[list[DifferenceView], Field(description="The parts of the difference.")]


class ComparisonView(PeriodView):
    """One history as each definition counts it."""

    messages: Annotated[int, Field(description="Messages of the history.", examples=[6])]
    definitions: Annotated[list[DefinitionCount], Field(description="The bot's own policy first.")]


@router.get("/sessions", **answers(AnalyticsView))
async def analyse_sessions(
    request: Request,
    config: ConfigDep,
    engine: ReadEngineDep,
    *,
    clock: ClockDep,
    principal: Reading,
    asked: Annotated[AnalyticsQuery, Query()],
) -> JsonResponse:
    """Metrics of closed sessions, by time and by dimensions. Each number links to the list of its sessions."""
    times = [name for name in asked.group_by if name in TIME_DIMENSIONS]
    dimensions = [DIMENSIONS[name] for name in asked.group_by if name in DIMENSIONS]
    if len(times) > 1 or len(dimensions) > MOST_DIMENSIONS:
        fault = Fault(
            "group_by", "it names too much", f"at most one of {', '.join(TIME_DIMENSIONS)} and {MOST_DIMENSIONS} others"
        )
        raise Invalid("the request is not valid", faults=(fault,))
    given = {name: request.query_params.getlist(name) for name in FilterQuery.model_fields if name in request.query_params}
    if "developer" not in given and not asked.developers:
        given["developer"] = ["false"]
    question = Question(
        wanted=_wanted(config, principal, asked),
        period=asked.period(clock.now_ms()),
        time_zone=asked.time_zone,
        metrics=[METRICS[name] for name in asked.metrics],
        dimensions=dimensions,
        time=times[0] if times else None,
        top=asked.top,
        compare=asked.compare is not None,
        listed=ListAddress(_LISTS, given, frozenset(FilterQuery.model_fields)),
    )
    return JsonResponse(await answer(engine, question))


@router.get("/paths", **answers(PathsView))
async def list_paths(
    config: ConfigDep, engine: ReadEngineDep, clock: ClockDep, *, principal: Reading, asked: Annotated[PathsQuery, Query()]
) -> JsonResponse:
    """The paths that most sessions took by the user's intents in order, and how many came to each step of a funnel."""
    found = await answer_paths(
        engine,
        _wanted(config, principal, asked),
        asked.period(clock.now_ms()),
        steps=asked.steps,
        depth=asked.depth,
        with_outcome=asked.with_outcome,
        top=asked.top,
    )
    return JsonResponse(found)


@router.get("/definitions")
async def list_definitions(_: Reading) -> DefinitionsView:
    """The definitions of all metrics and dimensions."""
    return DefinitionsView(
        metrics=[
            MetricView(name=each.name, kind=each.kind, unit=each.unit, definition=each.definition, sql=list(each.aggregates))
            for each in METRICS.values()
        ],
        dimensions=[DimensionView(name=each.name, definition=each.definition) for each in DIMENSIONS.values()],
        times=list(TIME_DIMENSIONS),
    )


@router.get("/definitions/compare", **answers(ComparisonView))
async def compare_definitions(
    config: ConfigDep, engine: ReadEngineDep, clock: ClockDep, *, principal: Reading, asked: Annotated[ComparisonQuery, Query()]
) -> JsonResponse:
    """The archived entries of a period, decided again as each system defines a session, with the reasons of the differences."""
    principal.bots_asked_for(config, frozenset({asked.bot}))
    policy = known_bot(config, asked.bot).rules.policy.policy
    period = asked.period(clock.now_ms())
    wanted = SessionFilter(bots=frozenset({asked.bot}), opened_from_ms=ms_of(period.start), opened_to_ms=ms_of(period.end))
    return JsonResponse(period.view | await compare(engine, asked.bot, wanted, policy=policy))


def _wanted(config: ConfigReplica, principal: Principal, asked: AnalyticsQuery | PathsQuery) -> SessionFilter:
    """Developers' sessions are left out unless they are asked for."""
    wanted = asked.filter(principal.bots_asked_for(config, asked.bots))
    return structs.replace(wanted, developer=False) if wanted.developer is None and not asked.developers else wanted
