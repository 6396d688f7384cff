"""How long reads of the archive take: pages of lists, sums and analytics, on the sessions of `bench.fill`.

python -m bench.reads    on DATABASE_URL, which `python -m bench.fill N` has filled
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from statistics import quantiles
from time import perf_counter

from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import session_reads
from app.archive.analytics_metrics import DIMENSIONS, METRICS
from app.archive.engine import make_engine
from app.archive.session_reads import SessionFilter, SessionPlace
from app.archive.summary import summarise
from app.domain.instants import DAY_MS
from app.domain.strand import Strand, session_id
from app.queries.analytics import ListAddress, Period, Question, TimeDimension, answer
from app.settings import Settings
from bench.fill import DAYS, LARGE, LAST_MS, SMALL

ROUNDS = 20
PAGE = 51
MONTH_MS = 30 * DAY_MS
Read = Callable[[Random], Awaitable[object]]

LISTED = frozenset(name.removesuffix("_ms") for name in SessionFilter.__struct_fields__) | {"bot"}
"""The filters of a list, so that each number has its address."""
_LARGE, _SMALL = frozenset({LARGE}), frozenset({SMALL})
LISTS: Mapping[str, SessionFilter] = {
    "all bots": SessionFilter(),
    "large bot": SessionFilter(bots=_LARGE),
    "small bot": SessionFilter(bots=_SMALL),
    "all bots, rare channel": SessionFilter(channel="twitter"),
    "all bots, no such channel": SessionFilter(channel="fax"),
    "large bot, rare channel": SessionFilter(bots=_LARGE, channel="twitter"),
    "large bot, no such channel": SessionFilter(bots=_LARGE, channel="fax"),
    "all bots, usual reason": SessionFilter(reason="inactivity"),
    "all bots, rare reason": SessionFilter(reason="survey_answered"),
    "all bots, no such reason": SessionFilter(reason="refresh"),
    "large bot, usual reason": SessionFilter(bots=_LARGE, reason="inactivity"),
    "large bot, rare reason": SessionFilter(bots=_LARGE, reason="survey_answered"),
    "small bot, rare reason": SessionFilter(bots=_SMALL, reason="survey_answered"),
    "large bot, rare reason within a month": SessionFilter(
        bots=_LARGE, reason="survey_answered", opened_from_ms=LAST_MS - 2 * MONTH_MS, opened_to_ms=LAST_MS - MONTH_MS
    ),
    "large bot, rare reason on a rare channel": SessionFilter(bots=_LARGE, reason="interrupted", channel="twitter"),
    "large bot, developers": SessionFilter(bots=_LARGE, developer=True),
    "one user": SessionFilter(user_id="user-7"),
    "no such user": SessionFilter(user_id="nobody"),
}


def _reads(engine: AsyncEngine) -> dict[str, Read]:
    """Every read by its name."""

    def first(wanted: SessionFilter) -> Read:
        return lambda _: page(wanted, None)

    async def page(wanted: SessionFilter, after: SessionPlace | None) -> object:
        async with engine.connect() as conn:
            return await session_reads.page(conn, wanted, after=after, limit=PAGE)

    async def total(days: int) -> object:
        return await summarise(engine, SessionFilter(bots=_LARGE, developer=False, opened_from_ms=LAST_MS - days * DAY_MS))

    async def one(random: Random) -> object:
        async with engine.connect() as conn:
            return await session_reads.find(conn, _place(random).id)

    return {
        **{f"list: {name}": first(wanted) for name, wanted in LISTS.items()},
        "list: all bots, deep page": lambda random: page(SessionFilter(), _place(random)),
        "list: large bot, deep page": lambda random: page(SessionFilter(bots=_LARGE), _place(random)),
        "one session that is not there": one,
        "summary of the large bot, 90 days": lambda _: total(90),
        "analytics: large bot, 90 days by day": lambda _: answer(engine, _question(90, "day", [])),
        "analytics: large bot, 90 days by day and channel": lambda _: answer(engine, _question(90, "day", ["channel"])),
        "analytics: large bot, 90 days, top intents": lambda _: answer(engine, _question(90, None, ["intent"])),
    }


def _place(random: Random) -> SessionPlace:
    opened_at_ms = LAST_MS - random.randrange(DAYS * DAY_MS)
    return SessionPlace(opened_at_ms, session_id(Strand(LARGE, "web:nobody"), generation=1, opened_at_ms=opened_at_ms))


def _question(days: int, time: TimeDimension | None, dimensions: list[str]) -> Question:
    end = datetime.fromtimestamp(LAST_MS / 1000, UTC)
    return Question(
        wanted=SessionFilter(bots=_LARGE, developer=False),
        period=Period(end - timedelta(days=days), end),
        time_zone="Europe/Berlin",
        metrics=[METRICS[name] for name in ("sessions", "contained", "interactions")],
        dimensions=[DIMENSIONS[name] for name in dimensions],
        time=time,
        top=10,
        compare=False,
        listed=ListAddress("/v1/sessions", {"bot": [LARGE]}, LISTED),
    )


async def measure(engine: AsyncEngine, *, rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """The median and the 95th percentile of each read, in ms, after one that is not counted."""
    random, found = Random(1), {}
    for name, read in _reads(engine).items():
        await read(random)
        took_ms = []
        for _ in range(rounds):
            began = perf_counter()
            await read(random)
            took_ms.append((perf_counter() - began) * 1000)
        steps = quantiles(took_ms, n=20)
        found[name] = steps[9], steps[18]
    return found


async def _main() -> None:
    settings = Settings.load()
    assert settings.database_url is not None, "set DATABASE_URL"
    engine = make_engine(settings.database_url, statement_timeout_s=600)
    for name, (median_ms, most_ms) in (await measure(engine)).items():
        print(f"{name:55} p50 {median_ms:9.1f} ms   p95 {most_ms:9.1f} ms")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_main())
