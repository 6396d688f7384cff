"""Fills the archive with closed sessions of twelve months, as bots of different sizes might have them: `python -m bench.fill N`.

Half of the sessions are of one bot, and each further bot has half of what is left; days and hours differ as people do; some
reasons, channels and intents are rare. They are inserted in the order of their openings, as an archivist does it to within
minutes. The same number always gives the same sessions. They have no messages.
"""

import asyncio
import math
import sys
from collections.abc import Iterator
from itertools import islice
from random import Random
from time import perf_counter
from typing import TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.engine import make_engine
from app.archive.sessions import ClosedSession, insert_closed
from app.domain.instants import DAY_MS, HOUR_MS, MINUTE_MS
from app.domain.records import Outcome, Reason, Session
from app.domain.strand import Strand, session_id
from app.settings import Settings

Name = TypeVar("Name", bound=str)

BOTS = tuple(f"bot-{number:02}" for number in range(12))
LARGE, SMALL = BOTS[0], BOTS[-1]
LAST_MS = 1_795_219_200_000  # 2026-11-21T00:00:00Z
DAYS = 365
A_BATCH = 5_000

_BY_SIZE = [2.0**-number for number in range(len(BOTS))]
_BY_HOUR = [1, 1, 1, 1, 1, 2, 4, 7, 10, 12, 12, 11, 11, 12, 12, 11, 10, 9, 8, 8, 7, 5, 3, 2]
_BY_WEEKDAY = [10, 10, 10, 10, 9, 6, 5]
_CHANNELS: dict[str, float] = {"web": 50, "whatsapp": 30, "facebook": 12, "sms": 6, "telegram": 1.9, "twitter": 0.1}
_REASONS: dict[Reason, float] = {
    "inactivity": 80,
    "resolved": 8,
    "ended": 5,
    "handoff": 3,
    "escalated": 2,
    "chat_closed": 1.5,
    "abandoned": 0.4,
    "interrupted": 0.09,
    "survey_answered": 0.01,
}
_OUTCOMES: dict[Reason, Outcome] = {
    "abandoned": "abandoned",
    "interrupted": "abandoned",
    "resolved": "resolved",
    "handoff": "handed_off",
    "escalated": "escalated",
}
_LANGUAGES: dict[str, float] = {"en": 40, "es": 30, "pt-BR": 20, "de": 9, "fi": 1}
_INTENTS: dict[str, float] = {f"intent-{number:02}": 1 / (number + 1) for number in range(60)}


def closed_sessions(count: int) -> Iterator[ClosedSession]:
    """`count` of them, in the order of their openings."""
    random = Random(count)
    for number, opened_at_ms in enumerate(sorted([_opening(random) for _ in range(count)])):
        yield _session(random, number, opened_at_ms)


def _session(random: Random, number: int, opened_at_ms: int) -> ClosedSession:
    bot = random.choices(BOTS, _BY_SIZE)[0]
    user = f"user-{int(random.paretovariate(0.7)) % 1_000_000 if _chance(random, 0.5) else random.randrange(300_000)}"
    channel, reason = _one_of(random, _CHANNELS), _one_of(random, _REASONS)
    outcome = _OUTCOMES.get(reason) or ("dropped" if _chance(random, 0.1) else "completed")
    interactive = _chance(random, 0.9)
    active_ms = min(int(random.lognormvariate(math.log(3 * MINUTE_MS), 1)), 5 * HOUR_MS)
    intents = tuple(_one_of(random, _INTENTS) for _ in range(random.choice((0, 1, 1, 2, 3)))) if interactive else ()
    strand = Strand(bot, f"{channel}:{user}")
    interactions = 1 + int(random.expovariate(0.12))
    closed_at_ms = opened_at_ms + active_ms + (15 * MINUTE_MS if reason == "inactivity" else 0)
    session = Session(
        id=session_id(strand, generation=number & 4095, opened_at_ms=opened_at_ms),
        user_id=user,
        channel=channel,
        opened_at_ms=opened_at_ms,
        entries=interactions + 1,
        last_entry_at_ms=opened_at_ms + active_ms,
        deadline_at_ms=closed_at_ms,
        interactions=interactions,
        user_entries=interactions // 2 if interactive else 0,
        bot_entries=interactions - interactions // 2,
        last_bot_at_ms=opened_at_ms + active_ms,
        interactive=interactive,
        counted=_chance(random, 0.98),
        intent=intents[-1] if intents else None,
        intents=intents,
        billing_sessions=active_ms // (15 * MINUTE_MS) + 1 if interactive else 0,
        first_response_ms=int(random.lognormvariate(7, 0.8)) if interactive else None,
        language=_one_of(random, _LANGUAGES),
        trade="agent" if reason == "handoff" else "bot",
        developer=_chance(random, 0.005),
        opened_by="m1",
        opening_rule="B04",
        policy_version=random.choice((1, 1, 1, 2)),
        closed_at_ms=closed_at_ms,
        reason=reason,
        closing_rule="K07",
        outcome=outcome,
        contained=outcome in {"completed", "resolved"} and reason != "interrupted",
    )
    return ClosedSession(strand, session, [])


def _opening(random: Random) -> int:
    """A day of the year before `LAST_MS` and an hour of it, the usual ones more often."""
    while True:
        day = random.randrange(DAYS)
        day_ms = LAST_MS - (day + 1) * DAY_MS
        if random.random() * max(_BY_WEEKDAY) < _BY_WEEKDAY[(day_ms // DAY_MS + 3) % 7]:  # the epoch began on a Thursday
            return day_ms + random.choices(range(24), _BY_HOUR)[0] * HOUR_MS + random.randrange(HOUR_MS)


def _chance(random: Random, probability: float) -> bool:
    return random.random() < probability


def _one_of(random: Random, weights: dict[Name, float]) -> Name:
    return random.choices(tuple(weights), tuple(weights.values()))[0]


async def fill(engine: AsyncEngine, count: int) -> float:
    """Insert that many by the archivist's own way; gives the rate of the inserts alone, in sessions a second."""
    made, seconds = closed_sessions(count), 0.0
    while batch := list(islice(made, A_BATCH)):
        began = perf_counter()
        async with engine.begin() as conn:
            await insert_closed(conn, batch)
        seconds += perf_counter() - began
    async with engine.connect() as plain:
        conn = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await conn.execute(text("SET statement_timeout = 0"))
        await conn.execute(text("VACUUM (ANALYZE) sessions"))
    return count / seconds


async def _main(count: int) -> None:
    settings = Settings.load()
    assert settings.database_url is not None, "set DATABASE_URL"
    engine = make_engine(settings.database_url, statement_timeout_s=600)
    print(f"{count:,} sessions, inserted at {await fill(engine, count):,.0f} a second")
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
