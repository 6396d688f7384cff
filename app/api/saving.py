"""Changes of configuration: one transaction, its audit entry in it, then every process hears of it before the caller does.

If Redis is away, the change stands all the same, and the worker publishes it as soon as it can.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import Principal
from app.archive import audit
from app.archive.audit import Actor
from app.config.change import writing_config
from app.config.publish import publish
from app.errors import AdjournError
from app.resources import Resources

CAUGHT_UP_TIMEOUT_S = 2.0
_log = structlog.get_logger()


class Saving:
    """The transaction of one change, and whose it is."""

    def __init__(self, conn: AsyncConnection, principal: Principal) -> None:
        self.conn = conn
        self._actor = Actor(principal.key.name, principal.key.id)

    async def record(self, action: str, target: str, *, bot: str | None = None, **detail: object) -> None:
        """Say in the audit log what is done here."""
        await audit.record(self.conn, self._actor, action, target, bot=bot, **detail)


@asynccontextmanager
async def saving(resources: Resources, principal: Principal) -> AsyncIterator[Saving]:
    """Commits at the end, then waits until this process knows what was saved."""
    async with writing_config(resources.engine) as conn:
        yield Saving(conn, principal)
    await _tell(resources)


async def _tell(resources: Resources) -> None:
    try:
        mark = await publish(resources.engine, resources.redis)
    except (RedisError, SQLAlchemyError, OSError, AdjournError) as error:
        _log.warning("config.saved_but_not_published", error=str(error))
        return
    if not await resources.config.caught_up(mark, timeout_s=CAUGHT_UP_TIMEOUT_S):
        _log.warning("config.published_but_not_followed", revision=mark.revision)
