"""The audit log: who changed what, written in the transaction of the change itself. Secrets are redacted.

Rows are only added: a trigger refuses every change of one.
"""

from collections.abc import Collection
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import keys
from app.archive.tables import audit_log
from app.errors import Unauthenticated
from app.log import redacted


class Actor(Struct, frozen=True):
    """The author of a change: a key and its name, or without a key the command line (`adjourn keys`) or Adjourn itself."""

    name: str
    key_id: str | None = None


async def check_key(conn: AsyncConnection, actor: Actor) -> None:
    """Raise `Unauthenticated` if the actor's key is revoked or has expired, even if this process has not learned of it yet."""
    if actor.key_id is not None and not await keys.is_valid(conn, actor.key_id):
        raise Unauthenticated("this API key was revoked or has expired")


def only(bots: Collection[str] | None) -> str | None:
    """The one bot of several (None: all): its admins may read of it."""
    return next(iter(bots)) if bots is not None and len(bots) == 1 else None


async def record(
    conn: AsyncConnection, actor: Actor, action: str, target: str, *, bot: str | None = None, **detail: object
) -> None:
    """`action` is a thing and what was done to it: `policy.changed`. `bot`: whose admins may read it; None: of no one bot.

    Raises `Unauthenticated` as `check_key` does, so that no change of a revoked key can be committed.
    """
    await check_key(conn, actor)
    values = {
        "key_id": actor.key_id,
        "actor": actor.name,
        "action": action,
        "bot_id": bot,
        "target": target,
        "detail": redacted(detail),
    }
    await conn.execute(insert(audit_log).values(values))


async def page(
    conn: AsyncConnection, *, bots: frozenset[str] | None, bot: str | None, before: int | None, limit: int
) -> list[Row[Any]]:
    """Entries, the latest first; `bots` are those that the caller may see (None: all), `before` the last one seen."""
    wanted = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
    if bots is not None:
        wanted = wanted.where(audit_log.c.bot_id.in_(sorted(bots)))
    if bot is not None:
        wanted = wanted.where(audit_log.c.bot_id == bot)
    if before is not None:
        wanted = wanted.where(audit_log.c.id < before)
    return list((await conn.execute(wanted)).all())
