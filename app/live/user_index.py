"""Repairs the sorted sets that find open sessions by user (`keys.users`).

Each commit maintains them. Sessions that version 0.1.0 opened are missing, and changes made to Redis from outside may leave any
difference: where a set and that of the open sessions differ in size, missing members are added and foreign ones deleted.
"""

from collections.abc import AsyncIterator

from app.live import keys
from app.live.codec import UNREADABLE
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe
from app.live.view import state_from, strands_in

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
