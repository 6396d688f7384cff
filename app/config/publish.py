"""Copies the configuration from Postgres to Redis, where every process follows it (`app.config.follower`).

A change publishes right after its commit, and the worker every second: that repairs a crash in between and fills an empty Redis.
The copy moves from mark to mark by compare-and-set, so publishers that race lose no change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct, json
from redis.asyncio import Redis
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config.records import BotRecord, EndpointConfig, KeyConfig, Mark
from app.domain.instants import ms_of
from app.errors import Unavailable
from app.live import keys
from app.live.lua import read_source

CHANGES_KEPT = 1_000
MARK = b"mark"
_TRIES = 20
_MOVE = read_source("app.config", "publish.lua").decode()

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
           coalesce(e.endpoints, '[]'::jsonb) AS endpoints,
           b.limits
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
    SELECT digest, id, name, scopes, bots, expires_at, revoked_at IS NOT NULL AS revoked, limits
    FROM api_keys WHERE revision > :revision
""")


class _Changes(Struct, frozen=True):
    """Rows that are newer than revision `since`, all read in one snapshot. `since` 0: every row."""

    to: Mark
    since: int
    bots: Sequence[Row[Any]]
    keys: Sequence[Row[Any]]


async def publish(engine: AsyncEngine, redis: Redis) -> Mark:
    """Bring Redis up to what Postgres holds now; cheap if it is there already. Returns the mark that it reached.

    Raises what redis-py and SQLAlchemy raise, and `Unavailable` if other publishers moved the copy at every try.
    """
    for _ in range(_TRIES):
        stored = await stored_mark(redis)
        changes = await _read_changes(engine, stored)
        if changes.to == stored or await _move(redis, stored, changes):
            return changes.to
    raise Unavailable("the configuration changes too fast to be published", retry_after_s=1)


async def stored_mark(redis: Redis) -> Mark | None:
    """How far the copy in Redis is; None if there is none."""
    stored: Any = await redis.hget(keys.CONFIG, MARK.decode())
    return Mark.read(stored) if stored is not None else None


async def move(
    redis: Redis,
    *,
    stored: Mark | None,
    to: Mark,
    bots: Sequence[BotRecord],
    api_keys: Mapping[bytes, KeyConfig | None],
    whole: bool,
) -> bool:
    """Bring the copy in Redis from `stored` to `to`; `api_keys` by digest, None for one that was revoked.

    `whole`: these are all bots and keys, and everything else in the copy is deleted. False if another process moved it first.
    """
    fields = {f"bot:{bot.id}": json.encode(bot) for bot in bots}
    fields |= {f"key:{digest.hex()}": json.encode(key) if key else b"" for digest, key in api_keys.items()}
    moved: int = await redis.eval(
        _MOVE,
        2,
        keys.CONFIG,
        keys.CONFIG_CHANGES,
        str(stored) if stored else "",
        str(to),
        "1" if whole else "0",
        CHANGES_KEPT,
        json.encode(list(fields)),
        *(item for pair in fields.items() for item in pair),
    )
    return moved == 1


async def _move(redis: Redis, stored: Mark | None, changes: _Changes) -> bool:
    return await move(
        redis,
        stored=stored,
        to=changes.to,
        bots=[_bot(row) for row in changes.bots],
        api_keys={row.digest: None if row.revoked else _key(row) for row in changes.keys},
        whole=stored is None or changes.since != stored.revision,
    )


async def _read_changes(engine: AsyncEngine, stored: Mark | None) -> _Changes:
    """The rows that changed since `stored`; all rows, if that is of another database or of a later state of a restored one.

    One snapshot for all tables: the order of revisions is the order of commits, so what it shows is complete up to its revision.
    """
    async with engine.connect() as plain:
        conn = await plain.execution_options(isolation_level="REPEATABLE READ")
        latest = (await conn.execute(_LATEST)).one()
        to = Mark(str(latest.instance), latest.revision)
        since = stored.revision if stored is not None and to.covers(stored) else 0
        if to.revision <= since:
            return _Changes(to, since, (), ())
        bots = await conn.execute(_BOTS, {"revision": since})
        found = await conn.execute(_KEYS, {"revision": since})
        return _Changes(to, since, bots.all(), found.all())


def _bot(row: Row[Any]) -> BotRecord:
    return BotRecord(
        id=row.id,
        name=row.name,
        sandbox=row.sandbox,
        clock_mode=row.clock_mode,
        deleted=row.deleted,
        policy_version=row.policy_version,
        effective_at_ms=ms_of(row.effective_at),
        policy=row.policy,
        endpoints=tuple(EndpointConfig(str(item["id"]), tuple(item["events"])) for item in row.endpoints),
        limits=row.limits,
    )


def _key(row: Row[Any]) -> KeyConfig:
    return KeyConfig(
        id=str(row.id),
        name=row.name,
        scopes=frozenset(row.scopes),
        bots=None if row.bots is None else frozenset(row.bots),
        expires_at_ms=None if row.expires_at is None else ms_of(row.expires_at),
        limits=row.limits,
    )
