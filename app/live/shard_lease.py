"""Which shards a worker sweeps: the workers with a recent heartbeat divide them.

A heartbeat is a lease: a worker that is silent for `lease_ms` is considered dead, and the others cover its shards. The lease only
saves work. Two workers that sweep one shard, because they read different heartbeats, close nothing twice.
"""

from app.live import keys
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe

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
