"""Saved views: filters of the list of sessions under names of the key's own. A key sees, replaces and deletes its own alone."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.auth import EngineDep, Reading, not_found
from app.api.fields import Body, Instant
from app.api.responses import JsonResponse, answers, refuses
from app.archive import keys
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict

router = APIRouter(prefix="/v1/saved-views", tags=["sessions"])

MOST_VIEWS = 50
"""Views of one key."""

_NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"
_Name = Annotated[
    str,
    Path(min_length=1, max_length=100, pattern=r"^[^/\x00-\x1f\x7f]+$", description="Name of the view.", examples=["dropped"]),
]
_QUERY = Field(
    max_length=4000,
    pattern=_NO_CONTROLS,
    description="Parameters of `GET /v1/sessions` as in an address; a page may add its own. They are not checked.",
    examples=["bot=shop&outcome=dropped"],
)


class ViewToSave(Body):
    """A view's content."""

    query: Annotated[str, _QUERY]


class SavedView(BaseModel):
    """A query under a name."""

    name: Annotated[str, Field(description="Name of the view, unique for the key.", examples=["dropped"])]
    query: Annotated[str, _QUERY]
    saved_at: Annotated[Instant, Field(description="When it was saved last.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "SavedView":
        return cls(name=row.name, query=row.query, saved_at=rfc3339(ms_of(row.saved_at)))


class SavedViews(BaseModel):
    """All views of the key."""

    views: Annotated[list[SavedView], Field(description="By name.")]


@router.get("", **answers(SavedViews))
async def list_saved_views(engine: EngineDep, principal: Reading) -> JsonResponse:
    """The views that this key saved, by name."""
    async with engine.connect() as conn:
        rows = await keys.views(conn, principal.key.id)
    return JsonResponse({"views": [SavedView.of(row).model_dump() for row in rows]})


@router.put("/{name}", responses=refuses(Conflict))
async def save_view(engine: EngineDep, principal: Reading, name: _Name, wanted: ViewToSave) -> SavedView:
    """Save a query under a name, in place of the one that the key saved under it before. 409 beyond 50 views."""
    async with engine.begin() as conn:
        row = await keys.save_view(conn, principal.key.id, name, wanted.query, most=MOST_VIEWS)
    if row is None:
        raise Conflict(f"this key has {MOST_VIEWS} views already", hint="delete one, or save under its name")
    return SavedView.of(row)


@router.delete("/{name}", status_code=204)
async def delete_view(engine: EngineDep, principal: Reading, name: _Name) -> None:
    """Delete a view."""
    async with engine.begin() as conn:
        if not await keys.delete_view(conn, principal.key.id, name):
            raise not_found("saved view", name)
