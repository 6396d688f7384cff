"""Data of one user over all conversations: the user's variables, and the sorted set that finds the user's open sessions.

Variables live in one hash a user, beside no conversation's state: a user has many strands. Each has a TTL, of 366 days where
none is given. The module owns their limit of size (that of a conversation's whole state); names and values are checked by
`app.domain.rules.variables`.

Each commit maintains the sorted sets (`keys.users`). Sessions that version 0.1.0 opened are missing, and changes made to Redis
from outside may leave any difference: where a set and that of the open sessions differ in size, `repair_users` adds missing
members and deletes foreign ones.
"""

from collections.abc import AsyncIterator, Mapping

from msgspec import msgpack

from app.domain.errors import StateTooLarge
from app.domain.records import SetVariable, Variable
from app.domain.rules import variables
from app.domain.rules.retention import LARGEST_STATE
from app.live import keys
from app.live.codec import UNREADABLE
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe
from app.live.view import state_from, strands_in

_encode = msgpack.Encoder().encode
_decode = msgpack.Decoder().decode


class UserVariables:
    """The variables of all users. `now_ms` is the instant in the bot's own time."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._set = LuaScript(read_source("app.live", "set_user_variable.lua"))

    async def read(self, bot: str, user: str, *, now_ms: int) -> Mapping[str, Variable]:
        """A user's variables that have not expired, by name."""
        reply = await self._pipe.call("HGETALL", keys.user_variables(bot, user))
        stored = {reply[i].decode(): _variable(reply[i + 1]) for i in range(0, len(reply), 2)}
        return dict(sorted(variables.unexpired(stored, now_ms).items()))

    async def put(self, bot: str, user: str, command: SetVariable, *, now_ms: int) -> Variable:
        """Set or replace one. Raises `InvalidVariable`, and `StateTooLarge` if all of the user's would take too much room."""
        variables.check(command)
        ttl_ms = variables.LONGEST_TTL_MS if command.ttl_ms is None else command.ttl_ms
        expires_at_ms = now_ms + ttl_ms
        stored = str(expires_at_ms).encode() + b":" + _encode(command.value)
        name = keys.user_variables(bot, user)
        size = await self._set.call(self._pipe, [name], command.name, stored, now_ms, LARGEST_STATE, variables.LONGEST_TTL_MS)
        if size < 0:
            raise StateTooLarge(-size, LARGEST_STATE)
        return Variable(command.value, expires_at_ms)

    async def delete(self, bot: str, user: str, name: str) -> None:
        """Delete one; nothing happens if there is none of this name."""
        await self._pipe.call("HDEL", keys.user_variables(bot, user), name)


def _variable(stored: bytes) -> Variable:
    expires_at, _, value = stored.partition(b":")
    return Variable(_decode(value), int(expires_at))


_PAGE_SIZE = 1_000
_INDEX = LuaScript(read_source("app.live", "index_users.lua"))
_UNINDEX = LuaScript(read_source("app.live", "unindex_users.lua"))


async def repair_users(pipe: Pipe, shard: int, bot: str) -> int:
    """Repair one bot's set in one shard; returns how many members were added or deleted."""
    live, users = keys.live(shard, bot), keys.users(shard, bot)
    if await pipe.call("ZCARD", live) == await pipe.call("ZCARD", users):
        return 0
    repairs = 0
    async for members in pages(pipe, users):
        repairs += await _delete_closed(pipe, live, users, members, bot=bot)
    async for members in pages(pipe, live):
        repairs += await _add_missing(pipe, shard, bot, members)
    return repairs


async def pages(pipe: Pipe, name: str) -> AsyncIterator[list[bytes]]:
    """The members of a sorted set, page by page; one that is added or deleted meanwhile may be left out."""
    cursor = b"0"
    while True:
        cursor, found = await pipe.call("ZSCAN", name, cursor, "COUNT", _PAGE_SIZE)
        if found:
            yield found[::2]
        if cursor == b"0":
            return


async def _delete_closed(pipe: Pipe, live: str, users: str, members: list[bytes], *, bot: str) -> int:
    pairs = [part for member in members for part in (keys.live_member(bot, member), member)]
    return int(await _UNINDEX.call(pipe, [live, users], *pairs))


async def _add_missing(pipe: Pipe, shard: int, bot: str, members: list[bytes]) -> int:
    strands = strands_in(members, of=keys.live(shard, bot))
    states = await pipe.call("MGET", *(keys.state(shard, keys.member(strand)) for strand in strands)) if strands else []
    pairs: list[str] = []
    for strand, stored in zip(strands, states, strict=True):
        user = _user_of(stored)
        if user is not None:
            pairs += keys.member(strand), keys.user_member(user, strand)
    return int(await _INDEX.call(pipe, [keys.live(shard, bot), keys.users(shard, bot)], *pairs)) if pairs else 0


def _user_of(stored: bytes | None) -> str | None:
    """The user of a stored state's open session; None where there is none or the state cannot be read."""
    try:
        session = state_from(stored).session
    except UNREADABLE:
        return None
    return None if session is None else session.user_id
