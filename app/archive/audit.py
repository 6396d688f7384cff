"""The audit log: who changed what, written in the transaction of the change itself. Secrets are redacted.

Rows are only added: a trigger refuses every change of one. So no entry names a user of a bot or holds anything that a user said.
"""

from collections.abc import Collection, Mapping
from typing import Any

from msgspec import Struct, json
from sqlalchemy import ColumnElement, Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import keys
from app.archive.tables import audit_log, instant
from app.errors import Unauthenticated
from app.log import redacted

MOST_BYTES = 4096
"""Of `before`, and of `after`, as JSON."""

AuditedFields = Mapping[str, Any]


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
    conn: AsyncConnection,
    actor: Actor,
    action: str,
    target: str,
    *,
    bot: str | None = None,
    before: AuditedFields | None = None,
    after: AuditedFields | None = None,
    **detail: object,
) -> None:
    """`action` is a thing and what was done to it: `policy.changed`. `bot`: whose admins may read it; None: of no one bot.

    `before` and `after` are the fields of the thing: of one that was changed, those that differ are kept.
    Raises `Unauthenticated` as `check_key` does, so that no change of a revoked key can be committed.
    """
    await check_key(conn, actor)
    values = {
        "key_id": actor.key_id,
        "actor": actor.name,
        "action": action,
        "bot_id": bot,
        "target": target,
        "detail": redacted(detail) | _sides(before, after),
    }
    await conn.execute(insert(audit_log).values(values))


class AuditFilter(Struct, frozen=True, kw_only=True):
    """Which entries; None: all. `bots`: those that the caller may see."""

    bots: frozenset[str] | None = None
    bot: str | None = None
    key_id: str | None = None
    action: str | None = None
    target: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


async def page(conn: AsyncConnection, wanted: AuditFilter, *, before: int | None, limit: int) -> list[Row[Any]]:
    """Entries, the latest first; `before` is the last one seen."""
    listed = select(audit_log).where(*_conditions(wanted)).order_by(audit_log.c.id.desc()).limit(limit)
    if before is not None:
        listed = listed.where(audit_log.c.id < before)
    return list((await conn.execute(listed)).all())


def _conditions(wanted: AuditFilter) -> list[ColumnElement[bool]]:
    entries = audit_log.c
    given: list[tuple[object, ColumnElement[bool]]] = [
        (wanted.bot, entries.bot_id == wanted.bot),
        (wanted.key_id, entries.key_id == wanted.key_id),
        (wanted.action, entries.action == wanted.action),
        (wanted.target, entries.target == wanted.target),
        (wanted.from_ms, entries.at >= instant(wanted.from_ms or 0)),
        (wanted.to_ms, entries.at < instant(wanted.to_ms or 0)),
    ]
    found = [condition for value, condition in given if value is not None]
    return found if wanted.bots is None else [*found, entries.bot_id.in_(sorted(wanted.bots))]


def _sides(before: AuditedFields | None, after: AuditedFields | None) -> dict[str, AuditedFields]:
    """Both sides without secrets and within their limit; where both are known, the fields that differ."""
    if before is not None and after is not None:
        differing = [name for name in {**before, **after} if before.get(name, _ABSENT) != after.get(name, _ABSENT)]
        before, after = ({name: side[name] for name in differing if name in side} for side in (before, after))
    sides = {"before": before, "after": after}
    return {name: _within_limit(redacted(dict(side))) for name, side in sides.items() if side is not None}


def _within_limit(side: dict[str, Any]) -> dict[str, Any]:
    """The side with its largest values replaced by their size, as many as needed."""
    sizes = {name: len(json.encode(value)) for name, value in side.items()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if len(json.encode(side)) <= MOST_BYTES:
            break
        side[name] = f"({sizes[name]} bytes)"
    return side


_ABSENT = object()
