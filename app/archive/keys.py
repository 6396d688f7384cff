"""Rows of API keys: digests, never the keys. Used by the API and by `adjourn keys`."""

from typing import Any

from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import api_keys
from app.ids import key_digest, shown_prefix


async def create(
    conn: AsyncConnection,
    key_id: str,
    key: str,
    *,
    name: str,
    scopes: list[str],
    bots: list[str] | None,
    created_by: str | None = None,
) -> Row[Any]:
    """Save the digest and the rights of a new key. `bots` None: all of them."""
    values = {
        "id": key_id,
        "name": name,
        "digest": key_digest(key),
        "prefix": shown_prefix(key),
        "scopes": scopes,
        "bots": bots,
        "created_by": created_by,
    }
    row: Row[Any] = (await conn.execute(insert(api_keys).values(values).returning(api_keys))).one()
    return row


async def find(conn: AsyncConnection, key_id: str) -> Row[Any] | None:
    """The key, revoked or not."""
    return (await conn.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()


async def page(conn: AsyncConnection, *, within: frozenset[str] | None, after: str | None, limit: int) -> list[Row[Any]]:
    """Keys in the order they were made; with `within`, only those that cover none but these bots."""
    wanted = select(api_keys).order_by(api_keys.c.id).limit(limit)
    if within is not None:
        wanted = wanted.where(api_keys.c.bots.contained_by(sorted(within)))
    if after is not None:
        wanted = wanted.where(api_keys.c.id > after)
    return list((await conn.execute(wanted)).all())


async def revoke(conn: AsyncConnection, key_id: str) -> bool:
    """False if it was revoked before, or never made."""
    revoked = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)).values(revoked_at=func.now())
    return (await conn.execute(revoked)).rowcount == 1


async def any_valid(conn: AsyncConnection, scope: str) -> bool:
    """Whether a valid key has this scope: the first start makes one if not."""
    valid = select(api_keys.c.id).where(api_keys.c.revoked_at.is_(None), api_keys.c.scopes.contains([scope])).limit(1)
    return await conn.scalar(valid) is not None
