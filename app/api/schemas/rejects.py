"""What Postgres refused, as the API tells it."""

from base64 import b64encode
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.schemas.common import Next
from app.domain.instants import ms_of, rfc3339


class RejectView(BaseModel):
    """A record that is set aside: of which session, what Postgres said, and the record itself, by position."""

    id: int
    at: str
    kind: str
    bot: str | None
    session_id: str | None
    error: str
    payload: Annotated[Any, Field(description="The record; as base64 where it cannot be read.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "RejectView":
        return cls(
            id=row.id,
            at=rfc3339(ms_of(row.at)),
            kind=row.kind,
            bot=row.bot_id,
            session_id=row.session_id,
            error=row.error,
            payload=_readable(row.payload),
        )


class RejectPage(BaseModel):
    """What was set aside, the latest first."""

    rejects: list[RejectView]
    next: Next


def _readable(payload: bytes) -> object:
    try:
        return msgspec.to_builtins(msgspec.msgpack.decode(payload), str_keys=True)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return b64encode(payload).decode()
