"""Sessions, messages and explanations as answers and webhooks show them, for the OpenAPI document; and closing sessions by API.

The domain makes this JSON (`app.domain.session_view`); the models only describe it, and a test holds the two equal. The fields
that the record of a session describes are taken from it.

A close is committed first and never waits for Postgres: if the audit log cannot be written, the log of the process names the
close instead.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import structlog
from fastapi import Depends
from pydantic import BaseModel, ConfigDict, Field, create_model
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.auth import ConfigDep, EngineDep, LedgerDep, OwnTime, OwnTimeDep, Principal, SessionsDep
from app.api.fields import Instant, UuidText
from app.api.paging import Next
from app.api.responses import described
from app.archive import audit
from app.archive.session_reads import ArchivedSession
from app.config.follower import ConfigReplica
from app.domain.entry import EntryType, Role
from app.domain.records import Close, Ended, Reason, Session, UnassignedReason
from app.domain.session_view import public_fields
from app.failures import failure_of
from app.live.ledger import Ledger
from app.queries.sessions import Sessions


class CountByRole(BaseModel):
    """Entries by role."""

    user: Annotated[int, Field(description="Entries by the user.", examples=[1])]
    bot: Annotated[int, Field(description="Entries by the bot.", examples=[1])]
    agent: Annotated[int, Field(description="Entries by human agents.", examples=[0])]
    system: Annotated[int, Field(description="Entries by the system.", examples=[0])]


class InstantByRole(BaseModel):
    """Instants by role; null for a role that took no part."""

    user: Annotated[Instant | None, Field(description="The user's.")]
    bot: Annotated[Instant | None, Field(description="The bot's.")]
    agent: Annotated[Instant | None, Field(description="The human agents'.")]
    system: Annotated[Instant | None, Field(description="The system's.")]


class SessionBase(BaseModel):
    """The fields that identify a session, say whether it is open, or count by role."""

    id: Annotated[UuidText, Field(description="Id of the session.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    conversation_id: Annotated[str, Field(description="Id of the conversation.", examples=["web:ann"])]
    thread: Annotated[
        str | None, Field(description="The client's session (method `client`) or the help window.", examples=["window-1"])
    ]
    user_id: Annotated[str, Field(description="Id of the user.", examples=["ann"])]
    channel: Annotated[str, Field(description="The channel.", examples=["web"])]
    status: Annotated[Literal["open", "closed"], Field(description="Whether it is open.")]
    closes_at: Annotated[Instant | None, Field(description="When it closes if nothing more comes; null if it is closed.")]
    entries_of: Annotated[CountByRole, Field(description="How many entries of each role.")]
    first_entry_at_of: Annotated[InstantByRole, Field(description="When the first entry of each role came.")]
    last_entry_at_of: Annotated[InstantByRole, Field(description="When the last entry of each role came.")]


if TYPE_CHECKING:
    DescribedSession = SessionBase
else:
    DescribedSession = create_model("DescribedSession", __base__=SessionBase, **described(public_fields(Session)))


class SessionSnapshot(DescribedSession):
    """A session as it was at the instant of an event."""


class SessionView(SessionSnapshot):
    """A session, open or closed."""

    continuation_of: Annotated[
        UuidText | None,
        Field(description="Id of the archived session that these messages belong to: Redis had lost that it was closed."),
    ]


class MessageView(BaseModel):
    """A message: the entry as the bot reported it, its place and its instant."""

    # Fields of an entry that few entries have are there only if the entry had them.
    model_config = ConfigDict(extra="allow")

    message_id: Annotated[str, Field(description="Id of the message.", examples=["m1"])]
    sequence: Annotated[int, Field(description="Place in the session, from 1.", examples=[1])]
    received_at: Annotated[Instant, Field(description="When it was received: its instant for all rules.")]
    sent_at: Annotated[Instant | None, Field(description="When it was sent, as the bot reported it.")]
    role: Annotated[Role, Field(description="The sender.")]
    type: Annotated[EntryType, Field(description="A message, or the name of an event.")]
    user_id: Annotated[str, Field(description="Id of the user.", examples=["ann"])]
    text: Annotated[str | None, Field(description="The text of a message.", examples=["Where is my order?"])]
    intent: Annotated[str | None, Field(description="The intent.", examples=["order.status"])]
    language: Annotated[str | None, Field(description="The language, as a BCP 47 tag.", examples=["en"])]
    tags: Annotated[list[str], Field(description="The tags.", examples=[["vip"]])]
    late: Annotated[bool, Field(description="Whether it came after the session had closed.")]


class SessionPage(BaseModel):
    """Sessions, in the order that was asked for."""

    sessions: Annotated[list[SessionView], Field(description="The sessions of this page.")]
    next: Next


class ClosedSessions(BaseModel):
    """The sessions that a close has closed."""

    sessions: Annotated[
        list[SessionView], Field(description="The sessions that it closed; those closed before are not among them.")
    ]


class LivePage(BaseModel):
    """Open sessions, the longest open first."""

    open: Annotated[int, Field(description="How many are open in all.", examples=[2])]
    sessions: Annotated[list[SessionView], Field(description="The sessions of this page.")]
    next: Next


class ChannelCount(BaseModel):
    """The open sessions of a bot on a channel."""

    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    channel: Annotated[str, Field(description="The channel.", examples=["web"])]
    open: Annotated[int, Field(description="How many are open.", examples=[2])]


class AllLivePage(BaseModel):
    """Open sessions, the next due first."""

    open: Annotated[int, Field(description="How many are open in all.", examples=[2])]
    by_channel: Annotated[list[ChannelCount], Field(description="How many are open by bot and channel; no zeros.")]
    sessions: Annotated[list[SessionView], Field(description="The sessions of this page. It may be short and not the last.")]
    next: Next
    last_event_id: Annotated[
        str, Field(description="Follow the events after it: `GET /v1/live/events?after=`.", examples=["1795341600000-0-0-0"])
    ]


class MessagePage(BaseModel):
    """Messages in order."""

    messages: Annotated[list[MessageView], Field(description="The messages of this page.")]
    next: Next


class UnassignedView(BaseModel):
    """An entry that was accepted and belongs to no session."""

    reason: Annotated[
        UnassignedReason,
        Field(
            description="`no_session`: none is known. `too_late`: the last ended over 24 hours before. `cannot_start`: policy."
        ),
    ]
    message: Annotated[MessageView, Field(description="The entry.")]


class UnassignedPage(BaseModel):
    """Entries without a session, the latest first."""

    entries: Annotated[list[UnassignedView], Field(description="The entries of this page.")]
    next: Next


class Cause(BaseModel):
    """An event in the life of a session, and its rule."""

    at: Annotated[Instant, Field(description="When it happened.")]
    rule: Annotated[str, Field(description="The rule.", examples=["B04"])]
    because: Annotated[str, Field(description="The rule in words.", examples=["the user said something"])]
    message_id: Annotated[str | None, Field(description="Id of the message that caused it, if one did.", examples=["m1"])]
    role: Annotated[Role | None, Field(description="Role of that message.")]
    type: Annotated[EntryType | None, Field(description="Type of that message.")]


class ReasonedCause(Cause):
    """The deadline of a session."""

    reason: Annotated[Reason, Field(description="Why it closes, or closed.")]


class CloseCause(ReasonedCause):
    """The close of a session."""

    key: Annotated[
        str | None, Field(description="Name of the key that closed it, for reason `api`.", examples=["the shop's bot"])
    ]


class ExplanationData(BaseModel):
    """The explanation of a session, for programs."""

    session_id: Annotated[UuidText, Field(description="Id of the session.")]
    bot: Annotated[str, Field(description="Id of the bot.", examples=["shop"])]
    conversation_id: Annotated[str, Field(description="Id of the conversation.", examples=["web:ann"])]
    status: Annotated[Literal["open", "closed"], Field(description="Whether it is open.")]
    policy_version: Annotated[int, Field(description="Version of the policy that its deadline was set under.", examples=[2])]
    previous_session_id: Annotated[UuidText | None, Field(description="Id of the conversation's session before.")]
    opened: Annotated[Cause, Field(description="The cause of its opening.")]
    deadline: Annotated[ReasonedCause, Field(description="The last cause that set its deadline.")]
    reminded_at: Annotated[Instant | None, Field(description="When the user was reminded.")]
    closed: Annotated[CloseCause | None, Field(description="The cause of its close; null while it is open.")]


class Explanation(BaseModel):
    """Why a session opened, was to close and closed."""

    words: Annotated[list[str], Field(description="Sentences, in the order of its life.", examples=[["It is open."]])]
    data: Annotated[ExplanationData, Field(description="The same for programs.")]


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
