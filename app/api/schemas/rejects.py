"""What could not be archived, as the API tells it."""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.schemas.common import Next
from app.closing.rejects import readable
from app.domain.instants import ms_of, rfc3339


class RejectView(BaseModel):
    """A record that is set aside: of which session, and what was said of it. Null where it cannot be read at all."""

    id: int
    at: str
    bot: str | None
    session_id: str | None
    error: str

    @classmethod
    def of(cls, row: Row[Any]) -> "RejectView":
        return cls(**_told(row))


class RejectDetail(RejectView):
    """With what Redis held of it."""

    record: Annotated[Any, Field(description="The record, by position; as base64 where it cannot be read.")]
    transcripts: Annotated[dict[str, list[Any]], Field(description="By session, what its hash held: messages, by position.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "RejectDetail":
        kept = readable(row.payload)
        return cls(**_told(row), record=kept.record, transcripts=kept.transcripts)


class RejectPage(BaseModel):
    """What was set aside, the latest first."""

    rejects: list[RejectView]
    next: Next


class RejectsReplayed(BaseModel):
    """How many rejects are being archived again."""

    replayed: Annotated[int, Field(description="Rejects that went back to the event streams.", examples=[3])]
    unreadable: Annotated[int, Field(description="Rejects that only another version of Adjourn can replay.", examples=[0])]


def _told(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": rfc3339(ms_of(row.at)),
        "bot": row.bot_id,
        "session_id": None if row.session_id is None else str(row.session_id),
        "error": row.error,
    }
