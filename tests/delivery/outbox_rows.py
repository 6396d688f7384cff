"""Writes sessions into the outbox for delivery tests, and reads its rows."""

from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import deliveries
from app.clock import wall_ms
from app.domain.records import Event, EventType, Session
from app.domain.strand import Strand, session_id
from app.ids import new_webhook_secret

CLOSURE_MESSAGE: Final = "session.closure_message"
CLOSED: Final = "session.closed"
EVENTS = [CLOSURE_MESSAGE, CLOSED]


class Outbox:
    """The outbox of one test's database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.secrets: dict[str, str] = {}
        self._sessions = 0

    async def bot(self, bot: str = "shop") -> str:
        await self._run("INSERT INTO bots (id, name) VALUES (:bot, :bot) ON CONFLICT DO NOTHING", bot=bot)
        return bot

    async def endpoint(self, url: str, *, bot: str = "shop", events: list[str] | None = None) -> str:
        """Add a bot's endpoint; gives its id. Its secret is in `secrets`."""
        await self.bot(bot)
        endpoint = str(uuid4())
        self.secrets[endpoint] = new_webhook_secret()
        await self._run(
            "INSERT INTO endpoints (id, bot_id, url, events, secret) VALUES (:id, :bot, :url, :events, :secret)",
            id=endpoint,
            bot=bot,
            url=url,
            events=EVENTS if events is None else events,
            secret=self.secrets[endpoint],
        )
        return endpoint

    def closed(self, *, bot: str = "shop", closure_message: bool = False, at_ms: int | None = None) -> list[tuple[Strand, Event]]:
        """The events of one more session that closed."""
        self._sessions += 1
        at_ms = wall_ms() if at_ms is None else at_ms
        strand = Strand(bot, f"conversation-{self._sessions}")
        made = Session(
            id=session_id(strand, generation=1, opened_at_ms=at_ms - 900_000),
            user_id="user",
            channel="web",
            opened_at_ms=at_ms - 900_000,
            closed_at_ms=at_ms,
            reason="inactivity",
        )
        types: list[EventType] = [CLOSURE_MESSAGE, CLOSED] if closure_message else [CLOSED]
        texts = {CLOSURE_MESSAGE: {"text": "Good-bye", "language": "en"}}
        return [(strand, Event(kind, made, at_ms, "K07", texts.get(kind))) for kind in types]

    async def add(self, count: int = 1, *, bot: str = "shop", closure_message: bool = False) -> list[str]:
        """Enqueue the end of that many sessions; gives the sessions' ids."""
        events = [pair for _ in range(count) for pair in self.closed(bot=bot, closure_message=closure_message)]
        await self.enqueue(events)
        return list(dict.fromkeys(event.session.id for _, event in events))

    async def enqueue(self, events: list[tuple[Strand, Event]]) -> int:
        async with self._engine.begin() as conn:
            return await deliveries.enqueue(conn, events)

    async def all(self) -> list[Row[Any]]:
        return await self._run("SELECT * FROM deliveries ORDER BY next_attempt_at, id")

    async def only(self) -> Row[Any]:
        (row,) = await self.all()
        return row

    async def statuses(self) -> dict[str, int]:
        rows = await self._run("SELECT status, count(*) AS n FROM deliveries GROUP BY status")
        return {row.status: row.n for row in rows}

    async def attempts(self) -> list[Row[Any]]:
        return await self._run("SELECT * FROM attempts ORDER BY delivery_id, attempt")

    async def endpoint_row(self, endpoint: str) -> Row[Any]:
        (row,) = await self._run("SELECT * FROM endpoints WHERE id = CAST(:id AS uuid)", id=endpoint)
        return row

    async def health(self) -> list[Row[Any]]:
        return await self._run("SELECT * FROM endpoint_health ORDER BY endpoint_id")

    async def run(self, statement: str, **parameters: object) -> list[Row[Any]]:
        return await self._run(statement, **parameters)

    async def _run(self, statement: str, **parameters: object) -> list[Row[Any]]:
        async with self._engine.begin() as conn:
            result = await conn.execute(text(statement), parameters)
            return list(result.all()) if result.returns_rows else []
