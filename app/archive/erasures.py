"""Erasures of users' data: the requests, what the archive does of one, and the receipt that stays.

A closed session of an erased user stays as a row without a user: id, conversation, metadata and message ids are replaced or
removed, messages and deliveries are deleted, and what statistics are made of stays. The receipt names the user by a digest.

While an erasure is `erasing` or `done`, the archivist writes sessions that opened before it in the same form, so that neither a
session that is on its way nor one that comes back with an older state of Redis brings anything back.
"""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID, uuid5

from msgspec import Struct, structs
from sqlalchemy import Row, any_, bindparam, delete, func, insert, null, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive.engine import Lock, take_lock
from app.archive.session_reads import SESSION_FIELDS, session_of
from app.archive.sessions import ClosedSession, json_value
from app.archive.tables import deliveries, erasures, instant, messages, saved_views, sessions, unassigned_entries
from app.domain.instants import ms_of
from app.domain.records import Session
from app.domain.strand import Strand

PORTION = 200
_WITH_ERASED = text("""
    SELECT bot FROM unnest(CAST(:bots AS text[])) AS bot
    WHERE EXISTS (SELECT FROM erasures WHERE bot_id = bot AND state <> 'pending')
""")
_SEEN_LIVE = text("closed_at > now() - interval '25 hours'")


BotUser = tuple[str, str]
"""Ids of a bot and of one of its users."""


class Erased(Struct, frozen=True):
    """A user of a bot whose sessions that opened up to `before_ms` have no user any more."""

    id: str
    before_ms: int

    def holds(self, session: Session) -> bool:
        return session.opened_at_ms <= self.before_ms

    def of(self, strand: Strand) -> Strand:
        """The strand that takes the place of one of the user's: the same for all sessions of a conversation."""
        conversation = uuid5(UUID(self.id), sha256(f"{strand.conversation}".encode()).hexdigest())
        return Strand(strand.bot, f"erased:{conversation}", "")

    def without_user(self, closed: ClosedSession) -> ClosedSession:
        """A session with what statistics are made of, and no message."""
        session = structs.replace(
            closed.session, user_id=f"erased:{self.id}", session_metadata=None, opened_by="", closed_by=None, deadline_by=None
        )
        return structs.replace(closed, strand=self.of(closed.strand), session=session, messages=())


def digest_of(bot: str, user: str) -> bytes:
    """The digest by which a receipt names a user."""
    return sha256(f"{bot}\x1f{user}".encode()).digest()


async def request(conn: AsyncConnection, bot: str, user: str, **values: object) -> Row[Any]:
    """The user's erasure that is under way, or else a new one of these `values` by column."""
    open_ones = select(erasures).where(
        erasures.c.bot_id == bot, erasures.c.user_digest == digest_of(bot, user), erasures.c.state == "pending"
    )
    found: Row[Any] | None = (await conn.execute(open_ones)).first()
    if found is not None:
        return found
    values |= {"bot_id": bot, "user_id": user, "user_digest": digest_of(bot, user)}
    row: Row[Any] = (await conn.execute(insert(erasures).values(values).returning(erasures))).one()
    return row


async def find(conn: AsyncConnection, bot: str, erasure: str) -> Row[Any] | None:
    return (await conn.execute(select(erasures).where(erasures.c.id == erasure, erasures.c.bot_id == bot))).one_or_none()


async def page(conn: AsyncConnection, bot: str, *, before: str | None, limit: int) -> list[Row[Any]]:
    """A bot's erasures, the latest first."""
    wanted = select(erasures).where(erasures.c.bot_id == bot).order_by(erasures.c.id.desc()).limit(limit)
    return list((await conn.execute(wanted if before is None else wanted.where(erasures.c.id < before))).all())


async def next_open(conn: AsyncConnection) -> list[Row[Any]]:
    """The erasures that are not done, the oldest first; no other transaction works on them before this one ends."""
    wanted = select(erasures).where(erasures.c.state != "done").order_by(erasures.c.id).limit(PORTION)
    return list((await conn.execute(wanted)).all())


async def lock(conn: AsyncConnection, erasure: str) -> Row[Any] | None:
    """The erasure, if it is not done and no other worker has it; it is this transaction's until that ends."""
    wanted = select(erasures).where(erasures.c.id == erasure, erasures.c.state != "done").with_for_update(skip_locked=True)
    return (await conn.execute(wanted)).one_or_none()


async def change(conn: AsyncConnection, erasure: str, **values: object) -> None:
    await conn.execute(update(erasures).where(erasures.c.id == erasure).values(values))


async def begin(conn: AsyncConnection, erasure: str, strands: list[list[str]]) -> None:
    """Make the archivist write no user from here on: transactions that do not see this have ended when it commits."""
    await take_lock(conn, Lock.ERASURE)
    await change(conn, erasure, state="erasing", strands=strands)


async def erased_among(conn: AsyncConnection, users: Collection[BotUser]) -> Mapping[BotUser, Erased]:
    """The erased ones of these users. No erasure begins before this transaction ends."""
    await take_lock(conn, Lock.ERASURE, shared=True)
    bots = set(await conn.scalars(_WITH_ERASED, {"bots": sorted({bot for bot, _ in users})}))
    if not bots:
        return {}
    by_digest = {digest_of(*user): user for user in users if user[0] in bots}
    digests = list(by_digest)
    wanted = (
        select(erasures.c.id, erasures.c.user_digest, erasures.c.before)
        .where(erasures.c.state != "pending", erasures.c.bot_id.in_(bots), erasures.c.user_digest == any_(bindparam("digests")))
        .order_by(erasures.c.before)
        .params(digests=digests)
    )
    rows = await conn.execute(wanted)
    return {by_digest[bytes(row.user_digest)]: Erased(str(row.id), ms_of(row.before)) for row in rows}


async def recent_strands(conn: AsyncConnection, bot: str, user: str, *, before: datetime) -> list[tuple[Strand, str]]:
    """Strand and id of the user's closed sessions of which Redis may hold something."""
    wanted = select(sessions.c.id, sessions.c.conversation_id, sessions.c.thread).where(
        sessions.c.bot_id == bot, sessions.c.user_id == user, sessions.c.opened_at <= before, _SEEN_LIVE
    )
    return [(Strand(bot, row.conversation_id, row.thread), str(row.id)) for row in await conn.execute(wanted)]


async def erase_portion(conn: AsyncConnection, erased: Erased, bot: str, user: str) -> Mapping[str, int]:
    """Take the user out of some closed sessions, and delete their messages and deliveries: how many of each, by table."""
    of_user = (sessions.c.bot_id == bot) & (sessions.c.user_id == user) & (sessions.c.opened_at <= instant(erased.before_ms))
    rows = (await conn.execute(select(*SESSION_FIELDS).where(of_user).limit(PORTION).with_for_update())).all()
    found = [session_of(row) for row in rows]
    if not found:
        return {}
    ids = [one.session.id for one in found]
    opened = {instant(one.session.opened_at_ms) for one in found}
    of_session = messages.c.session_id.in_(ids) & messages.c.opened_at.in_(opened)
    removed = await conn.execute(delete(messages).where(of_session))
    sent = await conn.execute(delete(deliveries).where(deliveries.c.session_id.in_(ids)))
    await _take_out(conn, (erased.without_user(ClosedSession(one.strand, one.session, ())) for one in found))
    return {"sessions": len(found), "messages": removed.rowcount, "deliveries": sent.rowcount}


async def erase_unassigned(conn: AsyncConnection, erased: Erased, bot: str, user: str) -> int:
    """Delete the user's entries without a session."""
    entries = unassigned_entries.c
    of_user = (entries.bot_id == bot) & (entries.entry["user_id"].astext == user)
    return (
        await conn.execute(delete(unassigned_entries).where(of_user, entries.received_at <= instant(erased.before_ms)))
    ).rowcount


async def erase_views(conn: AsyncConnection, bot: str, user: str) -> int:
    """Delete saved views that name the user or a conversation of the user's; of any bot where they name none."""
    may_name = or_(saved_views.c.query.contains("user_id="), saved_views.c.query.contains("conversation_id="))
    rows = await conn.execute(select(saved_views).where(may_name))
    named = [(row.key_id, row.name) for row in rows if _names(row.query, bot, user)]
    for key_id, name in named:
        await conn.execute(delete(saved_views).where(saved_views.c.key_id == key_id, saved_views.c.name == name))
    return len(named)


def _names(query: str, bot: str, user: str) -> bool:
    asked = parse_qs(query)
    names_user = user in asked.get("user_id", ()) or any(each.endswith(f":{user}") for each in asked.get("conversation_id", ()))
    return names_user and bot in asked.get("bot", [bot])


async def complete(conn: AsyncConnection, erasure: str, counts: Mapping[str, int]) -> None:
    """Leave the receipt."""
    await change(conn, erasure, state="done", user_id=None, strands=[], counts=dict(counts), completed_at=func.now())


async def _take_out(conn: AsyncConnection, closed: Iterable[ClosedSession]) -> None:
    changes = [
        {
            "session": one.session.id,
            "opened": instant(one.session.opened_at_ms),
            "user": one.session.user_id,
            "conversation": one.strand.conversation,
            "record": json_value(one.session),
        }
        for one in closed
    ]
    changed = (
        update(sessions)
        .where(sessions.c.id == bindparam("session"), sessions.c.opened_at == bindparam("opened"))
        .values(
            user_id=bindparam("user"),
            conversation_id=bindparam("conversation"),
            thread="",
            session_metadata=null(),
            closed_by=None,
            detail=bindparam("record", type_=sessions.c.detail.type),
        )
    )
    await conn.execute(changed, changes)
