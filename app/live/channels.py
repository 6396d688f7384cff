"""How many sessions are open by bot and channel: reads the counts that commits keep, and counts anew where they are wrong.

Sessions that version 0.1.0 opened were not counted, and changes made to Redis from outside may leave any difference.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable

from app.live import keys
from app.live.codec import UNREADABLE
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe
from app.live.users import pages
from app.live.view import state_from

_MISCOUNTED = LuaScript(read_source("app.live", "miscounted.lua"))
_RECOUNT = LuaScript(read_source("app.live", "recount.lua"))


async def open_by_channel(pipe: Pipe, *, shards: int) -> dict[tuple[str, str], int]:
    """Bot and channel to how many sessions are open there."""
    counts: Counter[tuple[str, str]] = Counter()
    for shard in await pipe.call_all([("HGETALL", keys.channels(shard)) for shard in range(shards)]):
        for i in range(0, len(shard), 2):
            counts[keys.channel_from(shard[i])] += int(shard[i + 1])
    return {place: count for place, count in sorted(counts.items()) if count > 0}


async def bots_with_sessions(pipe: Pipe, *, shards: Iterable[int]) -> dict[int, set[str]]:
    """The bots that have open sessions, by shard: one command for each shard, however many bots there are."""
    chosen = list(shards)
    fields = await asyncio.gather(*(pipe.call("HKEYS", keys.channels(shard)) for shard in chosen))
    return {shard: {keys.channel_from(field)[0] for field in reply} for shard, reply in zip(chosen, fields, strict=True)}


async def repair_channels(pipe: Pipe, shard: int, bots: Iterable[str]) -> int:
    """Count the open sessions of a shard anew if the sum is wrong; 1 if counts were wrong.

    `bots` are those that the counts may lack. Where sessions open or close meanwhile, the next check tries again. A session whose
    state cannot be read is in no count.
    """
    names = [keys.channels(shard), keys.counts(shard)]
    differs, opened, closed, *found = await _MISCOUNTED.call(pipe, names, keys.live(shard, ""), *bots)
    if not differs:
        return 0
    counts: Counter[str] = Counter()
    for bot in map(bytes.decode, found):
        async for members in pages(pipe, keys.live(shard, bot)):
            states = await pipe.call("MGET", *(keys.state(shard, member.decode()) for member in members))
            counts.update(keys.channel_field(bot, channel) for channel in map(_channel_of, states) if channel)
    pairs = (part for pair in counts.items() for part in pair)
    return int(await _RECOUNT.call(pipe, names, opened, closed, *pairs))


def _channel_of(stored: bytes | None) -> str | None:
    """The channel of a stored state's open session; None where there is none or the state cannot be read."""
    try:
        session = state_from(stored).session
    except UNREADABLE:
        return None
    return None if session is None else session.channel
