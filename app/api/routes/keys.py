"""API keys: create, list, revoke.

`admin` is the highest scope: it makes keys of any scope, also of those that the asker's own key does not have.
An admin whose key is limited to some bots makes keys for those alone, and sees and revokes only keys that reach no further.
"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import Administering, Principal
from app.api.dependencies import ResourcesDep
from app.api.saving import saving
from app.api.schemas.common import Cursor, Limit
from app.api.schemas.keys import KeyCreated, KeyPage, KeyView, NewKey
from app.api.schemas.problems import PROBLEMS
from app.archive import bots, keys
from app.domain.errors import Fault
from app.errors import Invalid, NotFound
from app.ids import new_id, new_key
from app.queries.cursor import cursor_of, page_of, place_of

router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=PROBLEMS)

LIST = "keys"


@router.post("", status_code=201)
async def create_key(new: NewKey, resources: ResourcesDep, principal: Administering) -> KeyCreated:
    """Create a key. The key itself is in this answer and in no other."""
    if new.bots is None:
        principal.require_all_bots()
    key, key_id = new_key(), new_id(resources.clock.now_ms())
    async with saving(resources, principal) as change:
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


@router.get("")
async def list_keys(
    resources: ResourcesDep,
    principal: Administering,
    limit: Annotated[Limit, Query()] = 50,
    cursor: Annotated[Cursor, Query()] = None,
) -> KeyPage:
    """Keys, revoked ones too, in the order they were made."""
    after = place_of(cursor, of=LIST, kind=UUID)
    async with resources.engine.connect() as conn:
        rows = await keys.page(conn, within=principal.key.bots, after=None if after is None else str(after), limit=limit + 1)
    shown, last = page_of(rows, limit=limit)
    return KeyPage(keys=[KeyView.of(row) for row in shown], next=last and cursor_of(last.id, of=LIST))


@router.delete("/{key_id}", status_code=204)
async def revoke_key(key_id: str, resources: ResourcesDep, principal: Administering) -> None:
    """Revoke a key; within 2 seconds nobody takes it any more. Revoking it again is no error."""
    known_id = _id(key_id)
    async with saving(resources, principal) as change:
        row = _covered(principal, await keys.find(change.conn, known_id), key_id)
        if await keys.revoke(change.conn, known_id):
            await change.record("key.revoked", known_id, bot=_only(row.bots), name=row.name)


async def _check_bots(conn: AsyncConnection, principal: Principal, names: list[str]) -> None:
    """Bots that do not exist and bots that are none of the asker's are refused in the same words."""
    absent = await bots.missing(conn, names)
    faults = tuple(
        Fault(f"bots[{at}]", f"there is no bot {name!r}", "name bots that exist")
        for at, name in enumerate(names)
        if name in absent or not principal.covers(name)
    )
    if faults:
        raise Invalid("the key would be for bots that do not exist", faults=faults)


def _covered(principal: Principal, row: Row[Any] | None, key_id: str) -> Row[Any]:
    """A key that reaches no further than the asker's own."""
    within = principal.key.bots
    if row is None or (within is not None and (row.bots is None or not within.issuperset(row.bots))):
        raise _no_key(key_id)
    return row


def _only(names: list[str] | None) -> str | None:
    """The one bot that a key is for: its admins may read of it."""
    return names[0] if names is not None and len(names) == 1 else None


def _id(key_id: str) -> str:
    try:
        return str(UUID(key_id))
    except ValueError:
        raise _no_key(key_id) from None


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id[:64]!r}")
