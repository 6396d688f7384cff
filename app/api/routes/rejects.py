"""Rejects: records that could not be archived. Each is stored whole, so that it can be replayed."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import AdminEngineDep, Administering, PipeDep, Principal, found, not_found
from app.api.fields import Instant, UuidText
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers, refuses
from app.archive import rejects
from app.closing.rejects import readable, replay, replay_all
from app.domain.instants import ms_of, rfc3339
from app.errors import Conflict

router = APIRouter(prefix="/v1/rejects", tags=["operations"])

_NUMBER = re.compile(r"[0-9]{1,18}")
_RejectPath = Annotated[
    str, Path(description="Number of the reject.", examples=["1"], json_schema_extra={"pattern": "^[0-9]{1,18}$"})
]


class RejectView(BaseModel):
    """A record that could not be archived."""

    id: Annotated[int, Field(description="Number of the reject; later ones have larger numbers.", examples=[1])]
    at: Annotated[Instant, Field(description="When it was rejected.")]
    bot: Annotated[str | None, Field(description="Id of the bot; null if the record cannot be read.", examples=["shop"])]
    session_id: Annotated[UuidText | None, Field(description="Id of the session; null if the record cannot be read.")]
    error: Annotated[str, Field(description="Why it could not be archived.", examples=["value out of range for type integer"])]

    @classmethod
    def of(cls, row: Row[Any]) -> "RejectView":
        return cls(**_fields(row))


class RejectDetail(RejectView):
    """A reject with the data that Redis held."""

    record: Annotated[
        Any, Field(description="The record, its fields by position; base64 if it cannot be read.", examples=["gaFh"])
    ]
    transcripts: Annotated[
        dict[str, list[Any]],
        Field(description="Messages by session id; each with its fields by position.", examples=[{}]),
    ]

    @classmethod
    def of(cls, row: Row[Any]) -> "RejectDetail":
        stored = readable(row.payload)
        return cls(**_fields(row), record=stored.record, transcripts=stored.transcripts)


class RejectPage(BaseModel):
    """Rejects, the latest first."""

    rejects: Annotated[list[RejectView], Field(description="The rejects of this page.")]
    next: Next


class RejectsReplayed(BaseModel):
    """How many rejects are being archived again."""

    replayed: Annotated[int, Field(description="Rejects that went back to the event streams.", examples=[3])]
    unreadable: Annotated[int, Field(description="Rejects that only another version of Adjourn can replay.", examples=[0])]


@router.get("", **answers(RejectPage))
async def list_rejects(engine: AdminEngineDep, principal: Administering, asked: Paged) -> JsonResponse:
    """Rejects, the latest first. Each is a fault of Adjourn: please report it with its `error`."""
    page = Page(asked, of="rejects", place=int)
    async with engine.connect() as conn:
        rows = await rejects.page(conn, bots=principal.key.bots, before=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: int(row.id), RejectView.of)
    return JsonResponse({"rejects": shown, "next": following})


@router.post("/replay", status_code=202)
async def replay_rejects(engine: AdminEngineDep, pipe: PipeDep, principal: Administering) -> RejectsReplayed:
    """Archive all rejects of the bots that the key covers again, the oldest first; one that fails again gets a new number."""
    done = await replay_all(engine, pipe, bots=principal.key.bots, actor=principal.actor)
    return RejectsReplayed(replayed=done.replayed, unreadable=done.unreadable)


@router.get("/{reject_id}")
async def read_reject(reject_id: _RejectPath, engine: AdminEngineDep, principal: Administering) -> RejectDetail:
    """One reject with all data that Redis held of it."""
    async with engine.connect() as conn:
        return RejectDetail.of(await _reject(conn, principal, reject_id))


@router.post("/{reject_id}/replay", status_code=202, responses=refuses(Conflict))
async def replay_reject(reject_id: _RejectPath, engine: AdminEngineDep, pipe: PipeDep, principal: Administering) -> RejectView:
    """Archive it again, once its cause is removed. If that fails, it comes back under a new number."""
    async with engine.begin() as conn:
        row = await _reject(conn, principal, reject_id, locked=True)
        await replay(conn, pipe, row, actor=principal.actor)
        return RejectView.of(row)


async def _reject(conn: AsyncConnection, principal: Principal, reject_id: str, *, locked: bool = False) -> Row[Any]:
    if not _NUMBER.fullmatch(reject_id):
        raise not_found("reject", reject_id)
    row = await rejects.find(conn, int(reject_id), locked=locked)
    return found(row, "reject", reject_id, seen=lambda row: principal.covers(row.bot_id))


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "at": rfc3339(ms_of(row.at)),
        "bot": row.bot_id,
        "session_id": None if row.session_id is None else str(row.session_id),
        "error": row.error,
    }
