"""A changed policy counts for open sessions too: their deadlines are moved in the background.

Every process learns of a new version within two seconds, and until then may decide by the old one: so the open sessions are
gone through once when a worker hears of it and once more when nobody can be behind. Where the boundary lies does not depend
on that: a session's deadline under the new version is never before the change, whoever computes it, whenever.
"""

import asyncio
from collections.abc import Sequence

from app.domain.records import ApplyPolicy
from app.domain.strand import Strand
from app.live import keys
from app.live.directory import Directory, KnownBot
from app.live.ledger import Ledger
from app.live.pipe import Pipe
from app.live.sandbox import SandboxClocks

# By then every process has heard of a change.
_ALL_KNOW_MS = 3_000
_LEASE_MS = 60_000
_AT_ONCE = 400


class PolicyChange:
    """Applies new policy versions to open sessions; several workers share the bots by a lease for each."""

    def __init__(
        self, *, pipe: Pipe, ledger: Ledger, directory: Directory, sandboxes: SandboxClocks, shards: int, worker: str
    ) -> None:
        self._pipe = pipe
        self._ledger = ledger
        self._directory = directory
        self._sandboxes = sandboxes
        self._shards = shards
        self._worker = worker
        self._done: dict[str, int] = {}
        self._first_pass: dict[str, tuple[int, int]] = {}  # bot to version and when its first pass ended

    async def run_once(self, now_ms: int) -> int:
        """Go through the sessions of every bot whose policy changed; returns how many deadlines were looked at."""
        changed = [bot for bot in self._directory.bots() if self._done.get(bot.id) != _version(bot)]
        if not changed:
            return 0
        applied = await self._pipe.call("HMGET", keys.POLICIES_APPLIED, *(bot.id for bot in changed))
        looked_at = 0
        for bot, version in zip(changed, applied, strict=True):
            if version is not None and int(version) == _version(bot):
                self._done[bot.id] = _version(bot)
            else:
                looked_at += await self._apply(bot, now_ms)
        return looked_at

    async def _apply(self, bot: KnownBot, now_ms: int) -> int:
        version, first = _version(bot), self._first_pass.get(bot.id)
        again = first is not None and first[0] == version
        if again and first is not None and now_ms - first[1] < _ALL_KNOW_MS:
            return 0
        if not await self._pipe.call("SET", keys.policy_lease(bot.id), self._worker, "NX", "PX", _LEASE_MS):
            return 0
        try:
            looked_at = await self._pass(bot)
            if again:
                await self._pipe.call("HSET", keys.POLICIES_APPLIED, bot.id, version)
                self._done[bot.id] = version
            else:
                self._first_pass[bot.id] = version, now_ms
        finally:
            await self._pipe.call("DEL", keys.policy_lease(bot.id))
        return looked_at

    async def _pass(self, bot: KnownBot) -> int:
        at_ms = await self._sandboxes.stands_ms(bot.id) if bot.sandbox else None
        return sum(await asyncio.gather(*(self._pass_shard(shard, bot.id, at_ms=at_ms) for shard in range(self._shards))))

    async def _pass_shard(self, shard: int, bot: str, *, at_ms: int | None) -> int:
        members = await self._pipe.call("ZRANGE", keys.live(shard, bot), 0, -1)
        strands = [keys.strand_from(member.decode()) for member in members]
        for start in range(0, len(strands), _AT_ONCE):
            await self._submit(strands[start : start + _AT_ONCE], at_ms=at_ms)
        return len(strands)

    async def _submit(self, strands: Sequence[Strand], *, at_ms: int | None) -> None:
        """All at once: the ledger makes few commits of them, and entries that come in the meantime go with the next."""
        await asyncio.gather(*(self._ledger.submit(strand, ApplyPolicy(), at_ms=at_ms) for strand in strands))


def _version(bot: KnownBot) -> int:
    return bot.rules.policy.version
