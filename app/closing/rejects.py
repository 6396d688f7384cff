"""Rejects: records that could not be archived, kept whole in Postgres as Redis held them, until an admin replays them.

A replay returns the record and its transcripts to Redis, where a worker archives it like any other. Done twice, it is archived
once. A record is only ever rejected for bad data, and only while few are: `RejectLimit` stops the archivist before a fault of
the product itself can empty a stream into the rejects.
"""

from base64 import b64encode
from collections import deque
from itertools import repeat
from typing import Any

from msgspec import Struct, msgpack, to_builtins
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.archive import audit, rejects
from app.archive.audit import Actor
from app.closing.transcripts import Transcripts
from app.errors import Conflict, Unavailable
from app.live import keys
from app.live.codec import UNREADABLE, decode_record
from app.live.event_stream import StreamRecord
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe

_FIELDS_A_COMMAND = 1_000  # fields and values; even
_WINDOW = 1_000  # records
_ALWAYS_ALLOWED = 10
_ALL = 100

_REPLAY = LuaScript(read_source("app.closing", "replay.lua"))


class RejectLimitReached(Unavailable):
    """More records are bad than may be rejected: they stay in the stream."""


class RejectLimit:
    """Of the last `_WINDOW` records of one archivist, at most `percent` may be rejected.

    A few always may, since one bad record in a quiet hour is a large share; with `percent` 0 none may.
    """

    def __init__(self, *, percent: int) -> None:
        self._percent = percent
        self._recent: deque[bool] = deque(maxlen=_WINDOW)

    def count(self, records: int, *, rejected: bool) -> None:
        self._recent.extend(repeat(rejected, records))

    def check(self, error: Exception) -> None:
        """Raises `RejectLimitReached` if one more reject, for this error, would be too many."""
        rejected, records = sum(self._recent), len(self._recent)
        allowed = max(_ALWAYS_ALLOWED, self._percent * records // _ALL) if self._percent else 0
        if self._percent < _ALL and rejected >= allowed:
            raise RejectLimitReached(
                f"{rejected} of the last {records} records were rejected, so nothing more is archived: {error}"
            ) from error


class RejectedRecord(Struct, frozen=True):
    """A record as a reject stores it.

    shard        in whose event stream it was
    record       the record as the stream held it
    transcripts  by session that it closes: fields and values, in turns, of the hash of its messages
    """

    shard: int
    record: bytes
    transcripts: dict[str, list[bytes]]


class Replayed(Struct, frozen=True):
    """How many rejects were replayed, and how many were not, since another version kept them."""

    replayed: int
    unreadable: int


_decode = msgpack.Decoder(RejectedRecord).decode
_decode_any = msgpack.Decoder().decode


async def reject(engine: AsyncEngine, transcripts: Transcripts, record: StreamRecord, error: Exception) -> None:
    """Keep a record in Postgres with its transcripts and with what was wrong."""
    kept = RejectedRecord(record.shard, record.raw, {session: await transcripts.raw(session) for session in record.ended})
    async with engine.begin() as conn:
        await rejects.add(
            conn,
            bot=record.strand.bot or None,
            session_id=record.events[-1].session.id if record.events else None,
            error=str(error),
            payload=msgpack.encode(kept),
        )


async def replay(conn: AsyncConnection, pipe: Pipe, row: Row[Any], *, actor: Actor) -> None:
    """Have a reject archived again; its row must be locked in this transaction.

    Raises `Conflict` if another version kept it, `Unavailable` or `ResponseError` if Redis does not take it. If the transaction
    fails after Redis took it, the reject is in both places, and another replay changes nothing.
    """
    await restore(pipe, row.payload)
    await rejects.remove(conn, row.id)
    before = {"session_id": row.session_id}
    await audit.record(conn, actor, "reject.replayed", str(row.id), bot=row.bot_id, before=before)


async def replay_all(engine: AsyncEngine, pipe: Pipe, *, bots: frozenset[str] | None, actor: Actor) -> Replayed:
    """Replay all rejects of these bots (None: all there are), the oldest first, each in a transaction of its own.

    Rejects that are added meanwhile are left, so that it ends also where a replayed record is rejected again.
    """
    replayed = unreadable = 0
    async with engine.connect() as conn:
        waiting = await rejects.ids(conn, bots=bots)
    for reject_id in waiting:
        async with engine.begin() as conn:
            row = await rejects.find(conn, reject_id, locked=True)
            if row is None:
                continue  # replayed by another request meanwhile
            try:
                await replay(conn, pipe, row, actor=actor)
            except Conflict:
                unreadable += 1
            else:
                replayed += 1
    return Replayed(replayed, unreadable)


async def restore(pipe: Pipe, payload: bytes) -> None:
    """Put a rejected record and its transcripts back into Redis. Raises `Conflict` if another version kept it."""
    try:
        kept = _decode(payload)
    except ValueError as error:
        raise Conflict("another version of Adjourn rejected this record, and only that one can replay it") from error
    for session, fields in kept.transcripts.items():
        name = keys.messages(kept.shard, session)
        for first in range(0, len(fields), _FIELDS_A_COMMAND):
            await pipe.call("HSET", name, *fields[first : first + _FIELDS_A_COMMAND])
        await pipe.call("PERSIST", name)
    await _REPLAY.call(pipe, [keys.events(kept.shard), keys.counts(kept.shard)], kept.record)


class ReadableReject(Struct, frozen=True):
    """A rejected record for a person to read: JSON-like values by position, and base64 where a value cannot be read."""

    record: object
    transcripts: dict[str, list[object]]


def users_of(payload: bytes) -> set[str]:
    """The users whose data a reject holds, as far as it can be read."""
    try:
        kept = _decode(payload)
        record = decode_record(kept.record)
    except UNREADABLE:
        return set()
    return {event.session.user_id for event in record.events} | {entry.message.user_id for entry in record.unassigned}


def readable(payload: bytes) -> ReadableReject:
    """The contents of a reject, also if another version stored it."""
    try:
        kept = _decode(payload)
    except ValueError:
        return ReadableReject(_read(payload), {})
    transcripts = {session: [_read(value) for value in fields[1::2]] for session, fields in kept.transcripts.items()}
    return ReadableReject(_read(kept.record), transcripts)


def _read(value: bytes) -> object:
    """It was kept because something is wrong with it, so nothing can be relied on."""
    try:
        return to_builtins(_decode_any(value), str_keys=True)
    except Exception:  # noqa: BLE001 - an invalid key, an unknown extension type, a nesting without end
        return b64encode(value).decode()
