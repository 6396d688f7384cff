"""API keys as the API takes and tells them."""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import Row

from app.api.schemas.common import Body, Name, Next, Slug
from app.domain.instants import ms_of, rfc3339

Scope = Literal["ingest", "read", "admin"]


def _each_once(scopes: list[Scope]) -> list[Scope]:
    return [scope for scope in get_args(Scope) if scope in scopes]


class NewKey(Body):
    """`scopes`: `ingest` posts entries, `read` queries, `admin` configures. `bots`: those that it is for; null for all."""

    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3), AfterValidator(_each_once)]
    bots: Annotated[list[Slug] | None, Field(min_length=1, max_length=1000)] = None


class KeyView(BaseModel):
    """A key, as far as it can be told: `prefix` is how it begins."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    bots: list[str] | None
    created_at: str
    created_by: str | None
    revoked_at: str | None

    @classmethod
    def of(cls, row: Row[Any]) -> "KeyView":
        return cls(**_told(row))


class KeyCreated(KeyView):
    """A new key, shown this once: it is kept nowhere."""

    key: Annotated[str, Field(description="The key itself, for `Authorization: Bearer …`; shown this once.")]

    @classmethod
    def with_key(cls, row: Row[Any], key: str) -> "KeyCreated":
        return cls(**_told(row), key=key)


class KeyPage(BaseModel):
    """Keys in the order they were made."""

    keys: list[KeyView]
    next: Next


def _told(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "bots": row.bots,
        "created_at": rfc3339(ms_of(row.created_at)),
        "created_by": row.created_by,
        "revoked_at": None if row.revoked_at is None else rfc3339(ms_of(row.revoked_at)),
    }
