"""The cost of an index of transcripts to the archive: `python -m bench.search`, on an empty DATABASE_URL."""

import asyncio
from collections.abc import Iterator
from random import Random
from time import perf_counter

from msgspec import structs
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.engine import make_engine
from app.archive.sessions import ClosedSession, insert_closed
from app.domain.records import Answer, Message
from app.settings import Settings
from bench.fill import closed_sessions

INDEX = "CREATE INDEX ix_messages_words ON messages USING gin (words_of(session_language, text))"
BATCHES, A_BATCH, MESSAGES = 16, 1_000, 8
_WORDS = [
    f"{first}{middle}{last}" for first in "bcdfghklmnprst" for middle in ("a", "ei", "or", "un") for last in ("t", "ding", "ly")
]
_WORDS = [f"{one}{other}" for one in _WORDS for other in _WORDS[::2]]  # 14,000
_WEIGHTS = [1 / (place + 3) for place in range(len(_WORDS))]


def _batches() -> Iterator[list[ClosedSession]]:
    random, made = Random(1), closed_sessions(BATCHES * A_BATCH)
    for _ in range(BATCHES):
        yield [structs.replace(one, messages=list(_said(random, one))) for one, _ in zip(made, range(A_BATCH), strict=False)]


def _said(random: Random, one: ClosedSession) -> Iterator[Message]:
    """Messages of 12 words, the usual ones more often."""
    for number, words in enumerate(random.choices(_WORDS, _WEIGHTS, k=12) for _ in range(MESSAGES)):
        at_ms = one.session.opened_at_ms + number
        answer = Answer(one.session.id, "continued", number + 1, None, at_ms)
        yield Message(number + 1, f"m{number}", at_ms, "user", "message", " ".join(words), answer, one.session.user_id)


async def _rates(engine: AsyncEngine) -> None:
    """Batches alternately without the index and with it; the database then holds all of them."""
    took_s = {False: 0.0, True: 0.0}
    for number, batch in enumerate(_batches()):
        indexed = bool(number % 2)
        async with engine.begin() as conn:
            await conn.execute(text(INDEX if indexed else "DROP INDEX IF EXISTS ix_messages_words"))
        began = perf_counter()
        async with engine.begin() as conn:
            await insert_closed(conn, batch)
        took_s[indexed] += perf_counter() - began
    plain, indexed_s = took_s[False], took_s[True]
    half = BATCHES // 2 * A_BATCH
    print(f"{half / plain:,.0f} sessions of {MESSAGES} messages a second, with the index {half / indexed_s:,.0f}: ", end="")
    print(f"{(indexed_s / plain - 1) * 100:.0f} % more time")


async def _main() -> None:
    settings = Settings.load()
    assert settings.database_url is not None, "set DATABASE_URL"
    engine = make_engine(settings.database_url, statement_timeout_s=600)
    await _rates(engine)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(_main())
