"""Closed sessions made up for tests that need some in the archive."""

from typing import Any

from app.archive.sessions import ClosedSession
from app.domain.records import Answer, Message, Session
from app.domain.strand import Strand, session_id

NOVEMBER_MS = 1_794_787_200_000  # 2026-11-16T00:00:00Z


def closed_session(
    number: int = 0, *, bot: str = "shop", messages: int = 2, text: str | None = "hi", **fields: object
) -> ClosedSession:
    """Session `number` of a bot: opened so many seconds after `NOVEMBER_MS`, closed by silence, but for `fields`."""
    strand = Strand(bot, str(fields.pop("conversation", f"web:user-{number}")), str(fields.pop("thread", "")))
    opened_at_ms = int(str(fields.pop("opened_at_ms", NOVEMBER_MS + number * 1000)))
    made = session_id(strand, generation=1, opened_at_ms=opened_at_ms)
    values: dict[str, Any] = {
        "user_id": f"user-{number}",
        "channel": "web",
        "opened_by": f"{number}-1",
        "opening_rule": "B04",
        "closed_at_ms": opened_at_ms + 900_000,
        "reason": "inactivity",
        "closing_rule": "K07",
        "policy_version": 1,
        "deadline_at_ms": opened_at_ms + 900_000,
        "deadline_by": f"{number}-{messages}",
        "entries": messages,
        "outcome": "completed",
        "contained": True,
    }
    session = Session(id=made, opened_at_ms=opened_at_ms, **(values | fields))
    kept = [message(made, f"{number}-{at}", sequence=at, at_ms=opened_at_ms + at, text=text) for at in range(1, messages + 1)]
    return ClosedSession(strand, session, kept)


def message(session: str, message_id: str, *, sequence: int, at_ms: int, **fields: object) -> Message:
    answer = Answer(session, "continued", sequence, None, at_ms)
    values: dict[str, Any] = {"role": "user", "type": "message", "text": "hi", "user_id": "user"} | fields
    return Message(sequence, message_id, at_ms, answer=answer, **values)
