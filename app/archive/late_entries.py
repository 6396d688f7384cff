"""Writes what comes after the end of sessions: late entries to the sessions that are archived, and entries without a session.

Late entries may be archived in any order, and again after a crash: a message is inserted once, and a session's row has the
effects of all of them. After a rollback of Redis two late entries can carry one number; the second gets the next one here, so
that neither is lost. All of it is part of the archivist's transaction.
"""

from collections.abc import Collection, Iterable, Sequence
from sys import maxsize
from typing import Any
from uuid import uuid5

import structlog
from msgspec import Struct, json, structs
from sqlalchemy import Row, delete, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import sessions as closed_sessions
from app.archive.copy_rows import clean
from app.archive.session_reads import SESSION_FIELDS, rows_within, session_of
from app.archive.sessions import ClosedSession, json_value, message_of_view
from app.archive.tables import instant, messages, rejects, sessions, unassigned_entries
from app.domain.records import Event, Message, Session, UnassignedEntry
from app.domain.rules import late
from app.domain.session_view import message_view
from app.domain.strand import EVENT_NAMESPACE, Strand, opened_at_ms_of

log = structlog.get_logger(__name__)

KEPT_UNASSIGNED = 1_000  # of a bot


class UnassignedPlace(Struct, frozen=True):
    """Where a page of a bot's entries without a session ended: instant and id of the last one on it."""

    at_ms: int
    id: str


class _Target(Struct):
    """A closed session that late entries belong to, as this transaction leaves it. `taken`: sequence to message id."""

    archived: ClosedSession
    session: Session
    taken: dict[int, str]
    new: list[Message]


async def not_archived(conn: AsyncConnection, session_ids: Collection[str]) -> set[str]:
    """The sessions among these that the archive does not hold."""
    found = await conn.scalars(select(sessions.c.id).where(*_are(session_ids))) if session_ids else ()
    return set(session_ids) - set(found)


async def rejected(conn: AsyncConnection, session_ids: Collection[str]) -> set[str]:
    """The sessions among these that were rejected."""
    return set(await conn.scalars(select(rejects.c.session_id).where(rejects.c.session_id.in_(list(session_ids)))))


async def add(conn: AsyncConnection, updates: Sequence[tuple[Strand, Event]]) -> list[tuple[Strand, Event]]:
    """Archive late entries of sessions that are all in the archive; returns their events, renumbered where they had to be."""
    if not updates:
        return []
    targets = await _lock(conn, updates)
    events = [(strand, _place(targets[event.session.id], event)) for strand, event in updates]
    for target in targets.values():
        if target.new:
            await closed_sessions.add_messages(conn, target.archived.session, target.new)
    changed = [
        structs.replace(target.archived, session=target.session)
        for target in targets.values()
        if target.session != target.archived.session
    ]
    if changed:
        await closed_sessions.update_closed(conn, changed)
    return events


async def add_unassigned(conn: AsyncConnection, entries: Sequence[tuple[Strand, UnassignedEntry]]) -> None:
    """Keep entries without a session, and of each bot the latest `KEPT_UNASSIGNED`."""
    if not entries:
        return
    values = [_unassigned_values(strand, entry) for strand, entry in entries]
    await conn.execute(upsert(unassigned_entries).on_conflict_do_nothing(), values)
    for bot in {strand.bot for strand, _ in entries}:
        await _prune(conn, bot)


async def unassigned_page(
    conn: AsyncConnection, bot: str, *, after: UnassignedPlace | None, limit: int, most_bytes: int = maxsize
) -> list[Row[Any]]:
    """A bot's entries without a session, the latest first, those after `after`, up to the one that passes `most_bytes`."""
    table = unassigned_entries.c
    wanted = select(unassigned_entries).where(table.bot_id == bot).order_by(table.received_at.desc(), table.id.desc())
    if after is not None:
        wanted = wanted.where(tuple_(table.received_at, table.id) < (instant(after.at_ms), after.id))
    return await rows_within(
        conn, wanted.limit(limit), lambda row: row, size=lambda row: len(json.encode(unassigned_view(row))), most_bytes=most_bytes
    )


def unassigned_view(row: Row[Any]) -> dict[str, Any]:
    """An entry without a session as JSON."""
    return {"reason": row.reason, "message": row.entry}


async def _lock(conn: AsyncConnection, updates: Sequence[tuple[Strand, Event]]) -> dict[str, _Target]:
    """The sessions of these updates, locked in the order of their ids: archivists wait for one another, but in no circle."""
    ids = {event.session.id for _, event in updates}
    rows = await conn.execute(select(*SESSION_FIELDS).where(*_are(ids)).order_by(sessions.c.id).with_for_update())
    found = (session_of(row) for row in rows)
    targets = {
        one.session.id: _Target(ClosedSession(one.strand, one.session, (), one.continuation_of), one.session, {}, [])
        for one in found
    }
    named = [event.data["message"]["message_id"] for _, event in updates if event.data]
    taken = select(messages.c.session_id, messages.c.sequence, messages.c.message_id).where(
        messages.c.session_id.in_(list(ids)),
        messages.c.opened_at.in_(_opened(ids)),
        messages.c.late | messages.c.message_id.in_(named),
    )
    for row in await conn.execute(taken):
        targets[row.session_id].taken[row.sequence] = row.message_id
    return targets


def _place(target: _Target, event: Event) -> Event:
    """Take a late entry in, unless the archive holds it; gives its event."""
    message = message_of_view((event.data or {})["message"], event.session.id)
    if message.message_id not in target.taken.values():
        # After a rollback the session in Redis may have had another number of entries when it closed again.
        if message.sequence in target.taken or message.sequence != target.session.entries + event.session.late_entries:
            event, message = _renumbered(target, event, message)
        target.taken[message.sequence] = message.message_id
        target.new.append(message)
    target.session = late.merged(target.session, event.session)
    return event


def _renumbered(target: _Target, event: Event, message: Message) -> tuple[Event, Message]:
    sequence = max((target.session.entries, *target.taken)) + 1
    number = sequence - target.session.entries
    log.warning("late entry renumbered after a rollback", session=event.session.id, number=number)
    placed = structs.replace(message, sequence=sequence)
    session = structs.replace(event.session, late_entries=number)
    return structs.replace(event, session=session, data={"message": message_view(placed)}), placed


async def _prune(conn: AsyncConnection, bot: str) -> None:
    table = unassigned_entries.c
    newest = select(table.received_at, table.id).where(table.bot_id == bot).order_by(table.received_at.desc(), table.id.desc())
    last = (await conn.execute(newest.offset(KEPT_UNASSIGNED - 1).limit(1))).one_or_none()
    if last is not None:
        older = tuple_(table.received_at, table.id) < (last.received_at, last.id)
        await conn.execute(delete(unassigned_entries).where(table.bot_id == bot, older))


def _unassigned_values(strand: Strand, entry: UnassignedEntry) -> dict[str, Any]:
    message = entry.message
    name = f"{strand.bot}/{strand.conversation}/{message.message_id}/{message.received_at_ms}"
    return {
        "id": str(uuid5(EVENT_NAMESPACE, name)),
        "bot_id": strand.bot,
        "received_at": instant(message.received_at_ms),
        "reason": entry.reason,
        "message_id": clean(message.message_id),
        "entry": json_value(message_view(message)),
    }


def _are(session_ids: Iterable[str]) -> tuple[Any, Any]:
    """Conditions for these sessions: their instants say in which partitions to look."""
    return sessions.c.id.in_(list(session_ids)), sessions.c.opened_at.in_(_opened(session_ids))


def _opened(session_ids: Iterable[str]) -> list[Any]:
    return [instant(opened_at_ms_of(session)) for session in session_ids]
