"""A user's data as a whole: export it, erase it, and the receipts of erasures."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.auth import (
    Administering,
    ClockDep,
    ConfigDep,
    EngineDep,
    OwnTimeDep,
    PipeDep,
    SettingsDep,
    found,
    id_of,
    known_bot,
)
from app.api.fields import BotPath, Instant, UserPath, UuidText
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers
from app.api.routes.exports import streamed
from app.archive import audit, erasures
from app.archive.tables import instant
from app.closing.rejects import readable, users_of
from app.domain.instants import ms_of, rfc3339
from app.ids import new_id
from app.queries.user_export import ExportedUser, UserExport

router = APIRouter(prefix="/v1/bots/{bot}", tags=["users"])

_ErasurePath = Annotated[str, Path(description="Id of the erasure.", json_schema_extra={"format": "uuid"})]


class ErasureCounts(BaseModel):
    """How much was erased so far."""

    sessions: Annotated[int, Field(description="Closed sessions that have no user any more.", examples=[3])] = 0
    messages: Annotated[int, Field(description="Messages that were deleted.", examples=[12])] = 0
    deliveries: Annotated[int, Field(description="Webhooks that were deleted, sent or not.", examples=[3])] = 0
    unassigned_entries: Annotated[int, Field(description="Entries without a session that were deleted.", examples=[0])] = 0
    rejects: Annotated[int, Field(description="Records that could not be archived and were deleted.", examples=[0])] = 0
    variables: Annotated[int, Field(description="Variables of the user that were deleted.", examples=[1])] = 0
    saved_views: Annotated[int, Field(description="Saved views that named the user and were deleted.", examples=[0])] = 0


class ErasureView(BaseModel):
    """The erasure of a user: its progress, and then its receipt."""

    id: Annotated[UuidText, Field(description="Id of the erasure.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    user_digest: Annotated[
        str, Field(description="SHA-256 of the bot's id, U+001F and the user's id, as hex.", examples=["5e88489…"])
    ]
    state: Annotated[Literal["pending", "erasing", "done"], Field(description="`done`: nothing is left to erase.")]
    before: Annotated[Instant, Field(description="Sessions that opened up to then are erased.")]
    requested_at: Annotated[Instant, Field(description="When it was requested.")]
    requested_by: Annotated[str, Field(description="Name of the key that requested it.", examples=["privacy desk"])]
    completed_at: Annotated[Instant | None, Field(description="When it was done.")]
    counts: Annotated[ErasureCounts, Field(description="The numbers of things erased so far.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "ErasureView":
        return cls(
            id=str(row.id),
            bot=row.bot_id,
            user_digest=bytes(row.user_digest).hex(),
            state=row.state,
            before=rfc3339(ms_of(row.before)),
            requested_at=rfc3339(ms_of(row.requested_at)),
            requested_by=row.requested_by,
            completed_at=None if row.completed_at is None else rfc3339(ms_of(row.completed_at)),
            counts=ErasureCounts(**row.counts),
        )


class ErasurePage(BaseModel):
    """Erasures, the latest first."""

    erasures: Annotated[list[ErasureView], Field(description="The erasures of this page.")]
    next: Next


@router.get("/erasures", **answers(ErasurePage))
async def list_erasures(bot: BotPath, config: ConfigDep, engine: EngineDep, _: Administering, *, asked: Paged) -> JsonResponse:
    """Erasures of a bot's users, the latest first."""
    known_bot(config, bot)
    page = Page(asked, of=["erasures", bot], place=str)
    async with engine.connect() as conn:
        rows = await erasures.page(conn, bot, before=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: str(row.id), ErasureView.of)
    return JsonResponse({"erasures": shown, "next": following})


@router.get("/erasures/{erasure_id}")
async def read_erasure(
    bot: BotPath, erasure_id: _ErasurePath, config: ConfigDep, engine: EngineDep, _: Administering
) -> ErasureView:
    """The progress of one erasure, or its receipt."""
    known_bot(config, bot)
    async with engine.connect() as conn:
        row = await erasures.find(conn, bot, id_of("erasure", erasure_id))
    return ErasureView.of(found(row, "erasure", erasure_id))


_LINES: dict[str, Any] = {
    "description": "NDJSON: a JSON object a line. Its `kind` is `session`, `message`, `delivery`, `unassigned_entry`, `reject`, "
    "`conversation` or `variable`.",
    "content": {},  # generators of clients leave out a route that answers `application/x-ndjson` alone
}


async def _export(
    bot: BotPath,
    user_id: UserPath,
    *,
    config: ConfigDep,
    clock: ClockDep,
    own_time: OwnTimeDep,
    engine: EngineDep,
    pipe: PipeDep,
    settings: SettingsDep,
) -> UserExport:
    own_ms = await own_time(known_bot(config, bot))
    user = ExportedUser(bot, user_id, clock.now_ms() if own_ms is None else own_ms)
    return UserExport(user, engine=engine, pipe=pipe, shards=settings.shards, reject_of=_reject)


@router.get("/users/{user_id:path}/export", response_class=StreamingResponse, response_model=None, responses={200: _LINES})
async def export_user(
    principal: Administering, request: Request, engine: EngineDep, *, export: Annotated[UserExport, Depends(_export)]
) -> StreamingResponse:
    """Everything that is kept of a user, live and archived, a line a thing.

    A session that is archived while this runs may come twice: sessions, deliveries and messages are named by their ids.
    """
    user = export.user
    async with engine.begin() as conn:
        await audit.record(conn, principal.actor, "user.exported", erasures.digest_of(user.bot, user.id).hex(), bot=user.bot)
    return await streamed(request, export.encoded(), name="user", form="ndjson")


def _reject(payload: bytes, user: str) -> dict[str, Any] | None:
    """The contents of a reject that holds data of this user."""
    if user not in users_of(payload):
        return None
    stored = readable(payload)
    return {"record": stored.record, "transcripts": stored.transcripts}


@router.delete("/users/{user_id:path}", status_code=202)
async def erase_user(
    bot: BotPath,
    user_id: UserPath,
    *,
    config: ConfigDep,
    clock: ClockDep,
    own_time: OwnTimeDep,
    engine: EngineDep,
    principal: Administering,
    response: Response,
) -> ErasureView:
    """Erase a user: open sessions close, and everything that names the user or was said is removed, live and archived.

    A worker does it within seconds. Closed sessions stay without the user, so that statistics stay right. Sessions that open
    after the request are kept.
    """
    own_ms = await own_time(known_bot(config, bot))
    now_ms = clock.now_ms()
    async with engine.begin() as conn:
        row = await erasures.request(
            conn,
            bot,
            user_id,
            id=new_id(now_ms),
            before=instant(now_ms if own_ms is None else own_ms),
            requested_by=principal.key.name,
            key_id=principal.key.id,
        )
        await audit.record(conn, principal.actor, "user.erased", str(row.id), bot=bot)
    response.headers["Location"] = f"/v1/bots/{bot}/erasures/{row.id}"
    return ErasureView.of(row)
