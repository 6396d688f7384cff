"""Reads what has changed in the configuration since a revision: for the copy that every process has of it."""

from typing import Any

from msgspec import Struct
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

_LATEST = text("""
    SELECT (SELECT id FROM instance) AS instance,
           greatest((SELECT max(revision) FROM bots), (SELECT max(revision) FROM policies),
                    (SELECT max(revision) FROM endpoints), (SELECT max(revision) FROM api_keys), 0) AS revision
""")

_BOTS = text("""
    SELECT b.id, b.name, b.sandbox, b.clock_mode, b.deleted_at IS NOT NULL AS deleted,
           coalesce(p.version, 0) AS policy_version,
           coalesce(p.effective_at, b.created_at) AS effective_at,
           coalesce(p.policy, '{}'::jsonb) AS policy,
           coalesce(e.endpoints, '[]'::jsonb) AS endpoints
    FROM bots b
    LEFT JOIN LATERAL (
        SELECT version, effective_at, policy FROM policies WHERE bot_id = b.id ORDER BY version DESC LIMIT 1
    ) p ON true
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object('id', id, 'events', events)) AS endpoints
        FROM endpoints WHERE bot_id = b.id AND enabled AND deleted_at IS NULL
    ) e ON true
    WHERE b.id IN (
        SELECT id FROM bots WHERE revision > :revision
        UNION SELECT bot_id FROM policies WHERE revision > :revision
        UNION SELECT bot_id FROM endpoints WHERE revision > :revision
    )
""")

_KEYS = text("""
    SELECT digest, id, name, scopes, bots, revoked_at IS NOT NULL AS revoked FROM api_keys WHERE revision > :revision
""")


class Changes(Struct, frozen=True):
    """Rows that are newer than `since`, all read at one instant. `since` 0: every row there is."""

    instance: str
    revision: int
    since: int
    bots: list[Row[Any]]
    keys: list[Row[Any]]


async def read_changes(engine: AsyncEngine, *, instance: str | None, revision: int) -> Changes:
    """What changed since `revision` of `instance`; everything, if this is another database or an older state of it.

    One snapshot for all tables: the order of revisions is the order of commits, so what it shows is complete up to its revision.
    """
    async with engine.connect() as plain:
        conn = await plain.execution_options(isolation_level="REPEATABLE READ")
        latest = (await conn.execute(_LATEST)).one()
        same = str(latest.instance) == instance and latest.revision >= revision
        since = revision if same else 0
        bots = await conn.execute(_BOTS, {"revision": since}) if latest.revision > since else None
        found = await conn.execute(_KEYS, {"revision": since}) if latest.revision > since else None
        return Changes(
            str(latest.instance), latest.revision, since, list(bots.all()) if bots else [], list(found.all()) if found else []
        )
