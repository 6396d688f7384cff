"""API keys: create, list, revoke.

`admin` is the highest scope: it makes keys of any scope, also scopes that the asking key does not have. An admin whose key is
limited to some bots makes keys for those bots alone, and sees and revokes only keys that reach no further.
"""

from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import APIRouter, Path
from pydantic import AfterValidator, BaseModel, Field
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import Administering, ChangingDep, ClockDep, EngineDep, KeyScope, Principal, found, id_of
from app.api.fields import ABOUT_NAME, Body, Instant, Name, SlugText, UuidText
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers
from app.archive import bots, keys
from app.domain.errors import Fault
from app.domain.instants import ms_of, rfc3339
from app.errors import Invalid
from app.ids import new_id, new_key

router = APIRouter(prefix="/v1/keys", tags=["keys"])

_KeyPath = Annotated[str, Path(description="Id of the key.", json_schema_extra={"format": "uuid"})]
_SCOPES = "`ingest` posts entries and closes sessions, `read` queries, `admin` configures."


def _each_once(scopes: list[KeyScope]) -> list[KeyScope]:
    return [scope for scope in get_args(KeyScope) if scope in scopes]


class NewKey(Body):
    """A key to create."""

    name: Annotated[Name, ABOUT_NAME]
    scopes: Annotated[
        list[KeyScope], Field(min_length=1, max_length=3, description=_SCOPES, examples=[["ingest"]]), AfterValidator(_each_once)
    ]
    bots: Annotated[
        list[SlugText] | None,
        Field(min_length=1, max_length=1000, description="The bots that it covers; null for all.", examples=[["shop"]]),
    ] = None


class KeyView(BaseModel):
    """A key, without the key itself."""

    id: Annotated[UuidText, Field(description="Id of the key.")]
    name: Annotated[str, Field(description="For people.", examples=["the shop's bot"])]
    prefix: Annotated[str, Field(description="How the key begins.", examples=["adj_7Qk2"])]
    scopes: Annotated[list[KeyScope], Field(description=_SCOPES, examples=[["ingest"]])]
    bots: Annotated[list[str] | None, Field(description="The bots that it covers; null for all.", examples=[["shop"]])]
    created_at: Annotated[Instant, Field(description="When it was created.")]
    created_by: Annotated[UuidText | None, Field(description="Id of the key that created it; null: created at the command line.")]
    revoked_at: Annotated[Instant | None, Field(description="When it was revoked, if it was.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "KeyView":
        return cls(**_fields(row))


class KeyCreated(KeyView):
    """A new key with the key itself, which is stored nowhere."""

    key: Annotated[
        str,
        Field(
            description="The key, for `Authorization: Bearer …`. No other answer shows it.",
            examples=["adj_7Qk2m0Yb9sT4vXwZ1aC3dE5fG6hJ8kL0nP2qR4sT6u"],
        ),
    ]

    @classmethod
    def with_key(cls, row: Row[Any], key: str) -> "KeyCreated":
        return cls(**_fields(row), key=key)


class KeyPage(BaseModel):
    """Keys in the order of their creation."""

    keys: Annotated[list[KeyView], Field(description="The keys of this page.")]
    next: Next


@router.post("", status_code=201)
async def create_key(new: NewKey, clock: ClockDep, changing: ChangingDep, principal: Administering) -> KeyCreated:
    """Create a key. The key itself is in this answer and in no other."""
    if new.bots is None:
        principal.require_all_bots()
    key, key_id = new_key(), new_id(clock.now_ms())
    async with changing(principal) as change:
        await _check_bots(change.conn, principal, new.bots or [])
        row = await keys.create(
            change.conn,
            key_id,
            key,
            name=new.name,
            scopes=list(new.scopes),
            bots=new.bots,
            created_by=principal.key.id,
        )
        await change.record("key.created", key_id, bot=_only(new.bots), name=new.name, scopes=new.scopes, bots=new.bots)
    return KeyCreated.with_key(row, key)


@router.get("", **answers(KeyPage))
async def list_keys(engine: EngineDep, principal: Administering, asked: Paged) -> JsonResponse:
    """Keys in the order of their creation, revoked ones too."""
    page = Page(asked, of="keys", place=UUID)
    async with engine.connect() as conn:
        after = None if page.after is None else str(page.after)
        rows = await keys.page(conn, within=principal.key.bots, after=after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: UUID(str(row.id)), KeyView.of)
    return JsonResponse({"keys": shown, "next": following})


@router.delete("/{key_id}", status_code=204)
async def revoke_key(key_id: _KeyPath, changing: ChangingDep, principal: Administering) -> None:
    """Revoke a key; within 2 seconds no process accepts it. Revoking it again is no error."""
    known_id = id_of("key", key_id)
    async with changing(principal) as change:
        row = found(await keys.find(change.conn, known_id), "key", key_id, seen=lambda row: _reaches_no_further(row, principal))
        if await keys.revoke(change.conn, known_id):
            await change.record("key.revoked", known_id, bot=_only(row.bots), name=row.name)


async def _check_bots(conn: AsyncConnection, principal: Principal, names: list[str]) -> None:
    """Refuse bots that do not exist and bots that the key does not cover, in the same words."""
    absent = await bots.missing(conn, names)
    faults = tuple(
        Fault(f"bots[{at}]", f"there is no bot {name!r}", "name bots that exist")
        for at, name in enumerate(names)
        if name in absent or not principal.covers(name)
    )
    if faults:
        raise Invalid("the key would be for bots that do not exist", faults=faults)


def _reaches_no_further(row: Row[Any], principal: Principal) -> bool:
    within = principal.key.bots
    return within is None or (row.bots is not None and within.issuperset(row.bots))


def _only(names: list[str] | None) -> str | None:
    """The one bot that a key is for: its admins may read about it in the audit log."""
    return names[0] if names is not None and len(names) == 1 else None


def _fields(row: Row[Any]) -> dict[str, Any]:
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
