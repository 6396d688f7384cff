"""Copies the configuration from Postgres to Redis, from where every process knows it (`app.config.follower`).

Routes publish right after their commit, and the worker every second: that repairs a crash in between and fills an empty Redis.
"""

from redis.asyncio import Redis
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncEngine

from app.config.changes import Changes, read_changes
from app.config.follower import BotRecord, EndpointConfig, KeyConfig, Mark, mark_held, move
from app.domain.instants import ms_of
from app.errors import Unavailable

_TRIES = 20


async def publish(engine: AsyncEngine, redis: Redis) -> Mark:
    """Bring Redis up to what Postgres holds now; cheap if it is there already. Returns how far that is.

    Raises what redis-py and SQLAlchemy raise, and `Unavailable` if others kept moving the copy all the time.
    """
    for _ in range(_TRIES):
        held = await mark_held(redis)
        changes = await read_changes(engine, instance=held.instance if held else None, revision=held.revision if held else 0)
        to = Mark(changes.instance, changes.revision)
        if to == held or await _move(redis, held, to, changes):
            return to
    raise Unavailable("the configuration changes too fast to be published", retry_after_s=1)


async def _move(redis: Redis, held: Mark | None, to: Mark, changes: Changes) -> bool:
    whole = held is None or changes.since != held.revision
    return await move(
        redis,
        held=held,
        to=to,
        bots=[_bot(row) for row in changes.bots],
        known_keys={row.digest: None if row.revoked else _key(row) for row in changes.keys},
        whole=whole,
    )


def _bot(row: Row[tuple[object, ...]]) -> BotRecord:
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
    )


def _key(row: Row[tuple[object, ...]]) -> KeyConfig:
    return KeyConfig(str(row.id), row.name, frozenset(row.scopes), None if row.bots is None else frozenset(row.bots))
