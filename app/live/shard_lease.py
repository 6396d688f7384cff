"""Which shards a worker sweeps: those who have lately given a sign of life share them.

A sign of life is a lease on that share: a worker that is silent for `lease_ms` is taken for dead, and others cover its shards.
That only saves work. Two workers that sweep one shard, because they see the others differently, close nothing twice.
"""

from app.live import keys
from app.live.lua import Lua
from app.live.pipe import Pipe

# By then a worker that gave no sign of life will not come back under its name.
_FORGET_MS = 3_600_000

# KEYS [1] signs of life. ARGV [1] worker, [2] now in ms.
_HEARTBEAT = b"""
redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""


class ShardLease:
    """One worker's part of the shards."""

    def __init__(self, *, pipe: Pipe, shards: int, worker: str, lease_ms: int) -> None:
        self._pipe = pipe
        self._heartbeat = Lua(_HEARTBEAT, when_full=True)
        self._shards = shards
        self._worker = worker
        self._lease_ms = lease_ms

    async def shards(self, now_ms: int) -> list[int]:
        """The shards that are this worker's now."""
        alive = {name for name, at_ms in (await self._heartbeats()).items() if now_ms - at_ms < self._lease_ms}
        names = sorted(alive | {self._worker})
        place = names.index(self._worker)
        return list(range(place, self._shards, len(names)))

    async def heartbeat(self, now_ms: int) -> None:
        """Give a sign of life, and forget those who have long been silent."""
        gone = [name for name, at_ms in (await self._heartbeats()).items() if now_ms - at_ms > _FORGET_MS]
        await self._heartbeat.call(self._pipe, [keys.HEARTBEATS], self._worker, now_ms)
        if gone:
            await self._pipe.call("HDEL", keys.HEARTBEATS, *gone)

    async def release(self) -> None:
        """Let the others cover this share at once."""
        await self._pipe.call("HDEL", keys.HEARTBEATS, self._worker)

    async def _heartbeats(self) -> dict[str, int]:
        """Worker to its last sign of life, in ms."""
        reply = await self._pipe.call("HGETALL", keys.HEARTBEATS)
        return {reply[i].decode(): int(reply[i + 1]) for i in range(0, len(reply), 2)}
