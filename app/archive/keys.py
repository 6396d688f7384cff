"""Rows of API keys: digests, never the keys; and the views that each saved. Used by the API, the worker and `adjourn keys`."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, delete, func, insert, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.tables import api_keys, instant, saved_views
from app.ids import key_digest, shown_prefix


async def create(
    conn: AsyncConnection,
    key_id: str,
    key: str,
    *,
    name: str,
    scopes: list[str],
    bots: list[str] | None,
    **more: object,
) -> Row[Any]:
    """Save the digest and the rights of a new key. `bots` None: all of them; `more` by column."""
    values = {
        "id": key_id,
        "name": name,
        "digest": key_digest(key),
        "prefix": shown_prefix(key),
        "scopes": scopes,
        "bots": bots,
    }
    row: Row[Any] = (await conn.execute(insert(api_keys).values(values | more).returning(api_keys))).one()
    return row


async def count(conn: AsyncConnection) -> int:
    """How many keys are not revoked."""
    return int(await conn.scalar(select(func.count()).select_from(api_keys).where(api_keys.c.revoked_at.is_(None))) or 0)


async def find(conn: AsyncConnection, key_id: str) -> Row[Any] | None:
    """The key, revoked or not."""
    return (await conn.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()


async def exists(conn: AsyncConnection, key: str) -> bool:
    """Whether this key was ever saved, revoked or not."""
    return await conn.scalar(select(api_keys.c.id).where(api_keys.c.digest == key_digest(key))) is not None


async def is_valid(conn: AsyncConnection, key_id: str) -> bool:
    """Whether the key is neither revoked nor expired; until this transaction ends, no other one revokes it."""
    wanted = select(api_keys.c.id).where(api_keys.c.id == key_id, _valid()).with_for_update(read=True)
    return await conn.scalar(wanted) is not None


async def page(conn: AsyncConnection, *, within: frozenset[str] | None, after: str | None, limit: int) -> list[Row[Any]]:
    """Keys in the order they were made; with `within`, only those that cover none but these bots."""
    wanted = select(api_keys).order_by(api_keys.c.id).limit(limit)
    if within is not None:
        wanted = wanted.where(api_keys.c.bots.contained_by(sorted(within)))
    if after is not None:
        wanted = wanted.where(api_keys.c.id > after)
    return list((await conn.execute(wanted)).all())


async def created_by(conn: AsyncConnection, key_id: str) -> list[Row[Any]]:
    """The keys that this key made, the keys that those made, and so on; those that are not revoked, in order."""
    made = select(api_keys.c.id).where(api_keys.c.created_by == key_id).cte("made", recursive=True)
    made = made.union(select(api_keys.c.id).where(api_keys.c.created_by == made.c.id))
    wanted = select(api_keys).where(api_keys.c.id.in_(select(made.c.id)), api_keys.c.revoked_at.is_(None))
    return list((await conn.execute(wanted.order_by(api_keys.c.id))).all())


async def change(conn: AsyncConnection, key_id: str, **values: object) -> Row[Any]:
    """The changed row of a key that was found in this transaction."""
    changed = update(api_keys).where(api_keys.c.id == key_id).values(values).returning(api_keys)
    row: Row[Any] = (await conn.execute(changed)).one()
    return row


async def revoke(conn: AsyncConnection, key_id: str) -> bool:
    """False if it was revoked before, or never made."""
    revoked = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)).values(revoked_at=func.now())
    return (await conn.execute(revoked)).rowcount == 1


async def save_uses(conn: AsyncConnection, used_at_ms: Mapping[str, int]) -> None:
    """Note when keys were used last, by id; an instant less than a minute after the one that is noted changes nothing."""
    key, at = bindparam("key", type_=api_keys.c.id.type), bindparam("at", type_=api_keys.c.last_used_at.type)
    later = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= at - timedelta(minutes=1))
    rows = [{"key": key_id, "at": instant(at_ms)} for key_id, at_ms in sorted(used_at_ms.items())]
    if rows:
        await conn.execute(update(api_keys).where(api_keys.c.id == key, later).values(last_used_at=at), rows)


async def any_valid(conn: AsyncConnection, scope: str) -> bool:
    """Whether a valid key has this scope: the first start makes one if not."""
    valid = select(api_keys.c.id).where(_valid(), api_keys.c.scopes.contains([scope])).limit(1)
    return await conn.scalar(valid) is not None


async def views(conn: AsyncConnection, key_id: str) -> list[Row[Any]]:
    """The views that a key saved, by name."""
    wanted = select(saved_views).where(saved_views.c.key_id == key_id).order_by(saved_views.c.name)
    return list((await conn.execute(wanted)).all())


async def save_view(conn: AsyncConnection, key_id: str, name: str, query: str, *, most: int) -> Row[Any] | None:
    """The row of a view that is made or replaced; None, with nothing saved, if it would be one more than `most`."""
    # The lock of the key's row makes two saves of one key wait for each other, so the count is exact.
    await conn.execute(select(api_keys.c.id).where(api_keys.c.id == key_id).with_for_update())
    values = {"key_id": key_id, "name": name, "query": query}
    upsert = postgres_insert(saved_views).values(values)
    replaced = {"query": upsert.excluded.query, "saved_at": func.now()}
    upsert = upsert.on_conflict_do_update(index_elements=["key_id", "name"], set_=replaced)
    row: Row[Any] = (await conn.execute(upsert.returning(saved_views))).one()
    if len(await views(conn, key_id)) > most:
        await conn.rollback()
        return None
    return row


async def delete_view(conn: AsyncConnection, key_id: str, name: str) -> bool:
    """False if the key has no view of this name."""
    deleted = delete(saved_views).where(saved_views.c.key_id == key_id, saved_views.c.name == name)
    return (await conn.execute(deleted)).rowcount == 1


async def copy_views(conn: AsyncConnection, key_id: str, *, to: str) -> None:
    """Give the views of a key to the key that replaces it, too."""
    new = literal(to, saved_views.c.key_id.type)
    copied = select(new, saved_views.c.name, saved_views.c.query).where(saved_views.c.key_id == key_id)
    await conn.execute(insert(saved_views).from_select(["key_id", "name", "query"], copied))


def _valid() -> ColumnElement[bool]:
    return api_keys.c.revoked_at.is_(None) & (api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > func.now()))
