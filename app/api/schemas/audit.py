"""Entries of the audit log as the API tells them."""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.schemas.common import Next
from app.domain.instants import ms_of, rfc3339


class AuditEntry(BaseModel):
    """One change: who (`actor` is the key's name), what (`policy.changed`), to which thing, and to what values."""

    id: int
    at: str
    actor: str
    key_id: Annotated[str | None, Field(description="Null: not by API.")]
    action: str
    bot: str | None
    target: str
    detail: dict[str, Any]

    @classmethod
    def of(cls, row: Row[Any]) -> "AuditEntry":
        return cls(
            id=row.id,
            at=rfc3339(ms_of(row.at)),
            actor=row.actor,
            key_id=row.key_id,
            action=row.action,
            bot=row.bot_id,
            target=row.target,
            detail=row.detail,
        )


class AuditPage(BaseModel):
    """Changes, the latest first."""

    entries: list[AuditEntry]
    next: Next
