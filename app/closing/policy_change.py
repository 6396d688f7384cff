"""Applies a changed policy to open sessions: moves their deadlines in the background.

Every process receives a new version within two seconds, and until then may decide by the old one. So a worker makes two passes
over the open sessions: one when it receives the version, and one when no process can be behind. The boundary does not depend on
that: a session's deadline under the new version is never before the change, whichever process computes it, at any time.

A conversation that cannot be decided does not end a pass: every later decision on it uses the new version. A failure of Redis
ends it; the pass is tried again, ever less often, while the passes of other bots go on.
"""

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from app.closing.sweep import concerns_one, raise_first
from app.config.follower import ConfigReplica
from app.config.records import BotConfig
from app.domain.records import ApplyPolicy
from app.domain.strand import Strand
from app.live import keys
from app.live.ledger import Ledger
from app.live.pipe import Pipe, RedisUnreachable
from app.live.sandbox import SandboxClocks
from app.live.view import strands_in

# After this long every process has received a change.
_RECEIVED_MS = 3_000
_LEASE_MS = 60_000
_AT_ONCE = 400
_SHORTEST_WAIT_MS = 1_000
_LONGEST_WAIT_MS = 60_000


class _Failed(Struct, frozen=True):
    """A pass that failed: its version, and how long and until when the next pass waits."""

    version: int
    wait_ms: int
    until_ms: int


class PolicyChange:
    """Applies new policy versions to open sessions; several workers share the bots by a lease for each."""

    def __init__(
        self, *, pipe: Pipe, ledger: Ledger, config: ConfigReplica, sandboxes: SandboxClocks, shards: int, worker: str
    ) -> None:
        self._pipe = pipe
        self._ledger = ledger
        self._config = config
        self._sandboxes = sandboxes
        self._shards = shards
        self._worker = worker
        self._done: dict[str, int] = {}
        self._first_pass: dict[str, tuple[int, int]] = {}  # bot to version and when its first pass ended
        self._failed: dict[str, _Failed] = {}

    async def run_once(self, now_ms: int) -> int:
        """Go through the sessions of every bot whose policy changed; returns how many sessions there were.

        Raises the first of what failed, when all bots are done.
        """
        changed = [bot for bot in self._config.bots() if self._done.get(bot.id) != _version(bot)]
        if not changed:
            return 0
        applied = await self._pipe.call("HMGET", keys.POLICIES_APPLIED, *(bot.id for bot in changed))
        sessions = 0
        failures: list[BaseException] = []
        for bot, version in zip(changed, applied, strict=True):
            if version == b"%d" % _version(bot):
                self._done[bot.id] = _version(bot)
            elif not self._waits(bot, now_ms):
                try:
                    sessions += await self._apply(bot, now_ms)
                except RedisUnreachable:
                    raise
                except Exception as error:  # noqa: BLE001 - raised when the others are done
                    failures.append(error)
        raise_first(failures)
        return sessions

    def _waits(self, bot: BotConfig, now_ms: int) -> bool:
        failed = self._failed.get(bot.id)
        return failed is not None and failed.version == _version(bot) and now_ms < failed.until_ms

    def _put_off(self, bot: BotConfig, now_ms: int) -> None:
        failed = self._failed.get(bot.id)
        again = failed is not None and failed.version == _version(bot)
        wait_ms = min(failed.wait_ms * 2, _LONGEST_WAIT_MS) if failed is not None and again else _SHORTEST_WAIT_MS
        self._failed[bot.id] = _Failed(_version(bot), wait_ms, now_ms + wait_ms)

    async def _apply(self, bot: BotConfig, now_ms: int) -> int:
        version, first = _version(bot), self._first_pass.get(bot.id)
        again = first is not None and first[0] == version
        if again and first is not None and now_ms - first[1] < _RECEIVED_MS:
            return 0
        self._put_off(bot, now_ms)  # until the pass has succeeded, also if Redis is full and takes no lease
        if not await self._pipe.call("SET", keys.policy_lease(bot.id), self._worker, "NX", "PX", _LEASE_MS):
            del self._failed[bot.id]  # another worker makes the pass
            return 0
        try:
            sessions, stuck = await self._pass(bot)
            if again:
                await self._pipe.call("HSET", keys.POLICIES_APPLIED, bot.id, version)
                self._done[bot.id] = version
            else:
                self._first_pass[bot.id] = version, now_ms
            del self._failed[bot.id]
        finally:
            await self._pipe.call("DEL", keys.policy_lease(bot.id))
        raise_first(stuck)
        return sessions

    async def _pass(self, bot: BotConfig) -> tuple[int, list[BaseException]]:
        """How many sessions there were, and the failures of single conversations. Raises any other failure, after the rest."""
        at_ms = await self._sandboxes.stored_ms(bot.id) if bot.sandbox else None
        passes = (self._pass_shard(shard, bot.id, at_ms=at_ms) for shard in range(self._shards))
        results = await asyncio.gather(*passes, return_exceptions=True)
        failures = [error for result in results for error in ([result] if isinstance(result, BaseException) else result[1])]
        raise_first([error for error in failures if not concerns_one(error)])
        return sum(result[0] for result in results if not isinstance(result, BaseException)), failures

    async def _pass_shard(self, shard: int, bot: str, *, at_ms: int | None) -> tuple[int, list[BaseException]]:
        name = keys.live(shard, bot)
        strands = strands_in(await self._pipe.call("ZRANGE", name, 0, -1), of=name)
        failures: list[BaseException] = []
        for start in range(0, len(strands), _AT_ONCE):
            failures += await self._submit(strands[start : start + _AT_ONCE], at_ms=at_ms)
        return len(strands), failures

    async def _submit(self, strands: Sequence[Strand], *, at_ms: int | None) -> list[BaseException]:
        """All at once: the ledger makes few commits of them, and entries that come in the meantime go with the next."""
        submitted = (self._ledger.submit(strand, ApplyPolicy(), at_ms=at_ms) for strand in strands)
        results = await asyncio.gather(*submitted, return_exceptions=True)
        return [result for result in results if isinstance(result, BaseException)]


def _version(bot: BotConfig) -> int:
    return bot.rules.policy.version
