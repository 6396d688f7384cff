"""Closing sessions by API: the close, the key that asked for it, and the entry in the audit log.

The close is committed first and never waits for Postgres: if the audit log cannot be written, the log of the process names the
close instead.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import structlog
from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.auth import Principal
from app.api.dependencies import ConfigDep, EngineDep, LedgerDep, OwnTime, OwnTimeDep, SessionsDep
from app.archive import audit
from app.archive.session_reads import ArchivedSession
from app.config.follower import ConfigReplica
from app.domain.records import Close, Ended
from app.failures import failure_of
from app.live.ledger import Ledger
from app.queries.sessions import Sessions

AUDIT_TIMEOUT_S = 2.0
_log = structlog.get_logger(__name__)


class SessionCloser:
    """Closes open sessions in the name of a key."""

    def __init__(
        self, *, config: ConfigReplica, ledger: Ledger, engine: AsyncEngine, own_time: OwnTime, sessions: Sessions
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._engine = engine
        self._own_time = own_time
        self._sessions = sessions

    async def close(self, principal: Principal, found: Sequence[ArchivedSession]) -> list[ArchivedSession]:
        """Close those of these sessions that are open, reason `api`; give those that this closed."""
        closed = [each for each in [await self._close(principal, one) for one in found] if each is not None]
        if closed:
            await self._audit(principal, closed)
        return closed

    async def _close(self, principal: Principal, one: ArchivedSession) -> ArchivedSession | None:
        bot = self._config.bot_or_deleted(one.strand.bot)
        if bot is None:
            return None
        command = Close(one.session.id, principal.key.name)
        outcome = await self._ledger.submit(one.strand, command, at_ms=await self._own_time(bot))
        if outcome.answer is None or Ended(one.session.id, "api") not in outcome.answer.closed:
            return None
        return await self._sessions.find(one.session.id)

    async def _audit(self, principal: Principal, closed: Sequence[ArchivedSession]) -> None:
        try:
            async with asyncio.timeout(AUDIT_TIMEOUT_S), self._engine.begin() as conn:
                for one in closed:
                    await audit.record(conn, principal.actor, "session.closed", one.session.id, bot=one.strand.bot)
        except Exception as error:  # noqa: BLE001 - the sessions are closed: a caller must not take that for failed
            log = _log.exception if failure_of(error) == "bug" else _log.warning
            log("close not in the audit log", key=principal.key.name, sessions=[one.session.id for one in closed])


async def _closer(
    config: ConfigDep, ledger: LedgerDep, engine: EngineDep, own_time: OwnTimeDep, *, sessions: SessionsDep
) -> SessionCloser:
    return SessionCloser(config=config, ledger=ledger, engine=engine, own_time=own_time, sessions=sessions)


CloserDep = Annotated[SessionCloser, Depends(_closer)]
