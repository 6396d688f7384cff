"""Which strands are due, read from the sorted sets, and which shards a worker sweeps. It decides nothing about the strands.

A member that names no strand of its shard can never be woken and would come first for ever: it is deleted and logged.

Workers with a recent heartbeat divide the shards. A heartbeat is a lease: a worker that is silent for `lease_ms` is considered
dead, and the others cover its shards. The lease only saves work. Two workers that sweep one shard, because they read different
heartbeats, close nothing twice.
"""

from collections.abc import Sequence

import structlog
from msgspec import Struct
from redis.exceptions import ResponseError

from app.domain.strand import Strand
from app.errors import Unavailable
from app.live import keys
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe

log = structlog.get_logger(__name__)


class DueBatch(Struct, frozen=True):
    """Due strands by shard, and the shards that Redis could not read."""

    strands: dict[int, list[Strand]]
    broken: dict[int, Unavailable]


class DueStrands:
    """The sorted sets of all shards."""

    def __init__(self, pipe: Pipe, *, shards: int) -> None:
        self._pipe = pipe
        self._shards = shards

    async def read(self, *, shards: Sequence[int], now_ms: int, bot: str | None, limit: int) -> DueBatch:
        """Strands due at `now_ms`, at most `limit` of a shard; `bot` for a sandbox bot, at its own time."""
        calls = [("ZRANGEBYSCORE", keys.due(shard, bot), "-inf", now_ms, "LIMIT", 0, limit) for shard in shards]
        replies = dict(zip(shards, await self._pipe.call_all(calls), strict=True))
        broken = {shard: _unreadable(shard, reply) for shard, reply in replies.items() if isinstance(reply, ResponseError)}
        strands = {
            shard: await self._strands(shard, members, bot)
            for shard, members in replies.items()
            if members and shard not in broken
        }
        return DueBatch(strands, broken)

    async def next_ms(self, *, shards: Sequence[int], after_ms: int, to_ms: int) -> int | None:
        """The first instant after `after_ms`, up to `to_ms`, at which a strand is due; None: none is. It skips broken shards."""
        replies = await self._pipe.call_all(
            [("ZRANGEBYSCORE", keys.due(shard), f"({after_ms}", to_ms, "WITHSCORES", "LIMIT", 0, 1) for shard in shards]
        )
        return min((int(float(reply[1])) for reply in replies if reply and not isinstance(reply, ResponseError)), default=None)

    async def postpone(self, strands: Sequence[Strand], *, to_ms: int, bot: str | None) -> None:
        """Make these due again at `to_ms`, so that the others come first; one that is no longer due stays so.

        Raises `Unavailable`.
        """
        if not strands:
            return
        names = [(keys.due(keys.shard_of(strand, self._shards), bot), keys.member(strand)) for strand in strands]
        for reply in await self._pipe.call_all([("ZADD", due, "XX", "GT", to_ms, member) for due, member in names]):
            if isinstance(reply, ResponseError):
                raise Unavailable(f"due conversations cannot be postponed: {reply}", retry_after_s=1)

    async def _strands(self, shard: int, members: Sequence[bytes], bot: str | None) -> list[Strand]:
        found = {member: keys.strand_or_none(member) for member in members}
        strands = {member: strand for member, strand in found.items() if strand is not None and self._belongs(strand, shard, bot)}
        foreign = [member for member in members if member not in strands]
        if foreign:
            log.error(
                "deleted members that name no conversation of this shard",
                shard=shard,
                bot=bot,
                members=list(map(repr, foreign[:10])),
            )
            await self._pipe.call("ZREM", keys.due(shard, bot), *foreign)
        return list(strands.values())

    def _belongs(self, strand: Strand, shard: int, bot: str | None) -> bool:
        return keys.shard_of(strand, self._shards) == shard and bot in {None, strand.bot}


def _unreadable(shard: int, error: ResponseError) -> Unavailable:
    return Unavailable(f"due conversations of shard {shard} cannot be read: {error}", retry_after_s=1)


# A worker's name holds its process id: after this long a silent one does not come back under its name.
_FORGET_MS = 3_600_000


class ShardLease:
    """One worker's part of the shards."""

    def __init__(self, *, pipe: Pipe, shards: int, worker: str, lease_ms: int) -> None:
        self._pipe = pipe
        self._script = LuaScript(read_source("app.live", "heartbeat.lua"), when_full=True)
        self._shards = shards
        self._worker = worker
        self._lease_ms = lease_ms

    async def shards(self, now_ms: int) -> list[int]:
        """The shards that this worker sweeps now."""
        alive = {name for name, at_ms in (await self._heartbeats()).items() if now_ms - at_ms < self._lease_ms}
        names = sorted(alive | {self._worker})
        place = names.index(self._worker)
        return list(range(place, self._shards, len(names)))

    async def heartbeat(self, now_ms: int) -> None:
        """Renew the lease, and delete the heartbeats of workers that have been silent for long."""
        expired = [name for name, at_ms in (await self._heartbeats()).items() if now_ms - at_ms > _FORGET_MS]
        await self._script.call(self._pipe, [keys.HEARTBEATS], self._worker, now_ms)
        if expired:
            await self._pipe.call("HDEL", keys.HEARTBEATS, *expired)

    async def release(self) -> None:
        """End the lease, so that the other workers cover its shards at once."""
        await self._pipe.call("HDEL", keys.HEARTBEATS, self._worker)

    async def _heartbeats(self) -> dict[str, int]:
        """Worker to the instant of its last heartbeat, in ms."""
        reply = await self._pipe.call("HGETALL", keys.HEARTBEATS)
        return {reply[i].decode(): int(reply[i + 1]) for i in range(0, len(reply), 2)}
