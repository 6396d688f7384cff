"""Exports of closed sessions and of their messages, streamed as CSV, NDJSON or Parquet, compressed if the client takes gzip."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from app.api.auth import ConfigDep, EngineDep, ReadEngineDep, Reading
from app.api.routes.sessions import FilterQuery
from app.archive import audit
from app.queries.exports import ExportKind, Format, encoded, place_of, spreadsheet_cell

router = APIRouter(prefix="/v1/exports", tags=["analytics"])

MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 6
_HEAD_AND_PAGE = 2


class ExportQuery(FilterQuery):
    """Which sessions, and from where on."""

    format: Annotated[Format, Field(description="One row a line: as CSV with a head line, or as JSON; or a Parquet file.")] = (
        "ndjson"
    )
    after: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Go on after this row: a session's id or, for messages, `<session id>:<sequence>`. No head line then; "
            "Parquet is a file of its own.",
            examples=["01a1fd8c-6900-7dff-8007-b98ca63b51ae"],
        ),
    ] = None
    spreadsheet: Annotated[
        bool,
        Field(description="In CSV, write an apostrophe before texts that a spreadsheet program would read as a formula."),
    ] = False


_STREAM: dict[str, Any] = {
    "response_class": StreamingResponse,
    "response_model": None,
    "responses": {
        200: {
            "description": "The rows, the first opened first.",
            "content": {media.partition(";")[0]: {"schema": {"type": "string"}} for media in MEDIA_TYPES.values()},
        }
    },
}


Started = Callable[[ExportKind, ExportQuery], Awaitable[AsyncIterator[bytes]]]
"""Notes an export in the audit log and returns its pieces."""


async def _started(config: ConfigDep, engine: EngineDep, replica: ReadEngineDep, principal: Reading) -> Started:
    async def start(kind: ExportKind, asked: ExportQuery) -> AsyncIterator[bytes]:
        bots = principal.bots_asked_for(config, asked.bots)
        after = None if asked.after is None else place_of(asked.after, kind=kind)
        async with engine.begin() as conn:  # the replica takes no entry of the audit log
            await audit.record(conn, principal.actor, f"{kind}.exported", kind, bot=audit.only(bots), **_audited(asked))
        cell = spreadsheet_cell if asked.spreadsheet else None
        return encoded(replica, asked.filter(bots), kind=kind, form=asked.format, after=after, cell=cell)

    return start


StartedDep = Annotated[Started, Depends(_started)]


@router.get("/sessions", **_STREAM)
async def export_sessions(request: Request, started: StartedDep, asked: Annotated[ExportQuery, Query()]) -> StreamingResponse:
    """Closed sessions, every field, the first opened first. If it is cut, go on with `after` the last whole row."""
    return await streamed(request, await started("sessions", asked), name="sessions", form=asked.format)


@router.get("/messages", **_STREAM)
async def export_messages(request: Request, started: StartedDep, asked: Annotated[ExportQuery, Query()]) -> StreamingResponse:
    """The messages of closed sessions, session by session. If it is cut, go on with `after` the last whole row."""
    return await streamed(request, await started("messages", asked), name="messages", form=asked.format)


def _audited(asked: ExportQuery) -> dict[str, Any]:
    """The filters by name: their values may be a user's, and an entry of the audit log is never erased."""
    return {"format": asked.format, "filters": sorted(asked.model_fields_set - {"format", "spreadsheet"})}


async def streamed(request: Request, pieces: AsyncIterator[bytes], *, name: str, form: Format) -> StreamingResponse:
    """An answer of these pieces as a file, compressed if the client takes gzip."""
    headers = {"content-disposition": f'attachment; filename="{name}.{form}"', "vary": "accept-encoding"}
    pieces = await _begun(pieces)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        pieces = _compressed(pieces)
    return StreamingResponse(pieces, media_type=MEDIA_TYPES[form], headers=headers)


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, the first of them read before the answer begins: a fault there is still a problem with its status."""
    first = []
    async for piece in pieces:
        first.append(piece)
        if len(first) == _HEAD_AND_PAGE:
            break

    async def all_of_them() -> AsyncIterator[bytes]:
        for piece in first:
            yield piece
        async for piece in pieces:
            yield piece

    return all_of_them()


async def _compressed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    packer = zlib.compressobj(level=_LEVEL, wbits=_GZIP)
    async for piece in pieces:
        packed = await asyncio.to_thread(packer.compress, piece)
        if packed:
            yield packed
    yield packer.flush()
