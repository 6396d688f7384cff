"""What could not be archived is kept whole in Postgres, as Redis held it, until an admin puts it back.

Putting it back means just that: its transcripts and its record return to Redis, and a worker archives it like any other. Done
twice, it is archived once.
"""

from base64 import b64encode

from msgspec import Struct, msgpack, to_builtins
from redis.exceptions import ResponseError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import rejects
from app.errors import Conflict
from app.live import keys
from app.live.event_stream import StreamRecord
from app.live.pipe import Pipe
from app.live.view import View

_FIELDS_A_COMMAND = 1_000  # fields and values; even

# KEYS [1] the shard's event stream, [2] its counts. ARGV [1] the record.
_TELL_AGAIN = """
redis.call('HINCRBY', KEYS[2], 'told', 1)
return redis.call('XADD', KEYS[1], '*', 'e', ARGV[1])
"""


class NoTranscript(ValueError):
    """What has a transcript's name is none."""


class RejectedRecord(Struct, frozen=True):
    """A record and, by session, the transcripts that belong to it: fields and values of hashes, in turns."""

    shard: int
    record: bytes
    transcripts: dict[str, list[bytes]]


_decode = msgpack.Decoder(RejectedRecord).decode
_decode_any = msgpack.Decoder().decode


async def set_aside(engine: AsyncEngine, view: View, item: StreamRecord, error: Exception) -> None:
    """Keep a record in Postgres with all that belongs to it and what was said of it."""
    aside = RejectedRecord(item.shard, item.raw, {session: await _transcript(view, session) for session in item.ended})
    async with engine.begin() as conn:
        await rejects.add(
            conn,
            bot=item.strand.bot or None,
            session_id=item.events[-1].session.id if item.events else None,
            error=str(error),
            payload=msgpack.encode(aside),
        )


async def _transcript(view: View, session: str) -> list[bytes]:
    try:
        return await view.transcript(session)
    except ResponseError as error:
        if is_wrong_type(error):
            return []
        raise


def is_wrong_type(error: ResponseError) -> bool:
    """Whether something else has a transcript's name; any other error is about Redis, and no reason to do without it."""
    return str(error).startswith("WRONGTYPE")


async def put_back(pipe: Pipe, payload: bytes) -> None:
    """Have it archived again. Raises `Unavailable` or `ResponseError`; doing it again does no harm then.

    Raises `Conflict` if it is none that this version set aside.
    """
    try:
        aside = _decode(payload)
    except ValueError as error:
        raise Conflict("this was set aside by another version, which alone can put it back") from error
    for session, fields in aside.transcripts.items():
        name = keys.messages(aside.shard, session)
        for first in range(0, len(fields), _FIELDS_A_COMMAND):
            await pipe.call("HSET", name, *fields[first : first + _FIELDS_A_COMMAND])
        await pipe.call("PERSIST", name)
    await pipe.call("EVAL", _TELL_AGAIN, 2, keys.events(aside.shard), keys.counts(aside.shard), aside.record)


class Readable(Struct, frozen=True):
    """The same for a person to read: JSON-like values, by position, and base64 where something cannot be read."""

    record: object
    transcripts: dict[str, list[object]]


def readable(payload: bytes) -> Readable:
    """What was set aside, whatever it is."""
    try:
        aside = _decode(payload)
    except ValueError:
        return Readable(_read(payload), {})
    transcripts = {session: [_read(value) for value in fields[1::2]] for session, fields in aside.transcripts.items()}
    return Readable(_read(aside.record), transcripts)


def _read(value: bytes) -> object:
    """Kept because something was wrong with it, so anything may be."""
    try:
        return to_builtins(_decode_any(value), str_keys=True)
    except Exception:  # noqa: BLE001 - such as a key that is none, a type of its own, a nesting without end
        return b64encode(value).decode()
