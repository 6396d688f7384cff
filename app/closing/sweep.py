"""Wakes the strands that are due; the ledger decides and commits.

Many workers may sweep at once: a compare-and-set that is lost changes nothing. A sandbox bot's strands are due in its own
time; moving its clock and sweeping are the same call for it.

A failure in one strand, shard or bot stops no other; the first one is raised when all the rest is done. A strand that cannot be
decided is postponed, so that it does not stay before the others for ever; a shard in which Redis fails is left to the next sweep.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial

from msgspec import Struct

from app.archive.session_reads import LONGEST_SESSION_MS
from app.config.follower import ConfigReplica
from app.domain.errors import DomainError
from app.domain.records import Wake
from app.domain.strand import Strand
from app.failpoints import failpoint
from app.live.channels import bots_with_sessions
from app.live.due import DueBatch, DueStrands
from app.live.fold import StuckConversation
from app.live.ledger import Ledger
from app.live.pipe import Pipe, RedisUnreachable
from app.live.sandbox import SandboxClocks

Job = Callable[[], Awaitable[object]]


def concerns_one(error: BaseException) -> bool:
    """Whether it concerns one conversation alone, which the ledger has logged; else it is about Redis, or a bug."""
    return isinstance(error, StuckConversation | DomainError)


def raise_first(failures: Sequence[BaseException]) -> None:
    """Raise the first failure, if there is one."""
    if failures:
        raise failures[0]


async def run_each(jobs: Iterable[Job]) -> None:
    """Run all jobs, one after the other, then raise the first failure; at once if Redis is unreachable."""
    failures: list[Exception] = []
    for job in jobs:
        try:
            await job()
        except RedisUnreachable:
            raise
        except Exception as error:  # noqa: BLE001 - raised when the others are done
            failures.append(error)
    raise_first(failures)


_POSTPONE_MS = 60_000


class _Round(Struct, frozen=True):
    """How many strands were woken, the shards in which more may be due, and what failed."""

    woken: int
    left: list[int]
    failures: list[BaseException]


class Sweep:
    """The sweep of all shards. `batch` is how many strands of a shard one round takes."""

    def __init__(self, *, pipe: Pipe, ledger: Ledger, shards: int, batch: int) -> None:
        self._due = DueStrands(pipe, shards=shards)
        self._ledger = ledger
        self._shards = shards
        self._batch = batch

    async def run_once(self, now_ms: int, *, shards: Sequence[int] | None = None) -> int:
        """Wake everything that is due at `now_ms`, in all shards or in these; returns how many strands were woken."""
        return await self._rounds(now_ms, bot=None, shards=shards)

    async def next_due_ms(self, now_ms: int, *, within_ms: int, shards: Sequence[int]) -> int | None:
        """The first deadline after `now_ms` in these shards, if it is within `within_ms`. One command a shard."""
        return await self._due.next_ms(shards=shards, after_ms=now_ms, to_ms=now_ms + within_ms)

    async def run_bot(self, bot: str, now_ms: int, *, shards: Sequence[int] | None = None) -> int:
        """The same for a sandbox bot whose clock stands at `now_ms`."""
        return await self._rounds(now_ms, bot=bot, shards=shards)

    async def run_round(self, now_ms: int, *, bot: str | None = None, shards: Sequence[int] | None = None) -> int:
        """One round: of each of these shards, or of all, no more than a batch."""
        done = await self._round(now_ms, bot=bot, shards=range(self._shards) if shards is None else shards)
        raise_first(done.failures)
        return done.woken

    async def _rounds(self, now_ms: int, *, bot: str | None, shards: Sequence[int] | None) -> int:
        """Rounds until nothing is due: a strand may be due again before `now_ms` (a reminder, then the close)."""
        woken = 0
        failures: list[BaseException] = []
        left: Sequence[int] = range(self._shards) if shards is None else shards
        while left:
            done = await self._round(now_ms, bot=bot, shards=left)
            woken, left = woken + done.woken, done.left
            failures += done.failures
        raise_first(failures)
        return woken

    async def _round(self, now_ms: int, *, bot: str | None, shards: Sequence[int]) -> _Round:
        due = await self._due.read(shards=shards, now_ms=now_ms, bot=bot, limit=self._batch)
        failed = await self._wake(due, at_ms=now_ms if bot else None)
        stuck = [(shard, strand) for shard, strand, error in failed if concerns_one(error)]
        troubled = {shard for shard, _, error in failed if not concerns_one(error)}
        failures: list[BaseException] = [*due.broken.values(), *(error for *_, error in failed)]
        try:
            await self._due.postpone([strand for _, strand in stuck], to_ms=now_ms + _POSTPONE_MS, bot=bot)
        except Exception as error:  # noqa: BLE001 - raised at the end; until they are postponed, a next round would find them again
            troubled.update(shard for shard, _ in stuck)
            failures.append(error)
        woken = sum(map(len, due.strands.values())) - len(failed)
        return _Round(woken, [shard for shard in due.strands if shard not in troubled], failures)

    async def _wake(self, due: DueBatch, *, at_ms: int | None) -> list[tuple[int, Strand, BaseException]]:
        """Wake them all; returns those that failed, each with its shard and its error."""
        strands = [(shard, strand) for shard, of_shard in due.strands.items() for strand in of_shard]
        if not strands:
            return []
        failpoint("sweep.after_read")
        wakes = (self._ledger.submit(strand, Wake(), at_ms=at_ms) for _, strand in strands)
        results = await asyncio.gather(*wakes, return_exceptions=True)
        failpoint("sweep.after_commit")
        return [(*item, result) for item, result in zip(strands, results, strict=True) if isinstance(result, BaseException)]


async def close_deleted_sandbox(bot: str, *, clocks: SandboxClocks, sweep: Sweep) -> None:
    """Close all open sessions of a deleted sandbox bot, each at its own deadline.

    Its clock no longer moves by itself, so it is moved past the deadline of the last session that can be open.
    """
    now_ms = await clocks.stored_ms(bot)
    if now_ms is not None:
        await sweep.run_bot(bot, await clocks.forward(bot, to_ms=now_ms + LONGEST_SESSION_MS))


class SandboxSweep:
    """The sweep of all sandbox bots, each at the instant at which its own clock stands. A bot that fails stops no other.

    The counts by channel name the bots that have open sessions, and their shards: a bot without any costs nothing.
    """

    def __init__(self, *, pipe: Pipe, sweep: Sweep, config: ConfigReplica, clocks: SandboxClocks) -> None:
        self._pipe = pipe
        self._sweep = sweep
        self._config = config
        self._clocks = clocks

    async def run_once(self, *, shards: Sequence[int]) -> None:
        """Wake everything that is due in these shards."""
        await self._run_each(self._sweep.run_bot, shards)

    async def run_round(self, *, shards: Sequence[int]) -> None:
        """One round of these shards, of each no more than a batch."""

        async def sweep(bot: str, now_ms: int, *, shards: Sequence[int]) -> None:
            await self._sweep.run_round(now_ms, bot=bot, shards=shards)

        await self._run_each(sweep, shards)

    async def close_deleted(self, *, shards: Sequence[int]) -> None:
        """Close what is still open in these shards of deleted sandbox bots.

        A process that had not received the deletion yet may have opened a session, or Redis was unreachable at the deletion.
        """
        deleted = {bot.id for bot in self._config.bots_and_deleted() if bot.deleted and bot.sandbox}
        found = await self._with_sessions(deleted, shards)
        await run_each(partial(close_deleted_sandbox, bot, clocks=self._clocks, sweep=self._sweep) for bot in found)

    async def _run_each(self, sweep: Callable[..., Awaitable[object]], shards: Sequence[int]) -> None:
        found = await self._with_sessions({bot.id for bot in self._config.sandbox_bots()}, shards)
        await run_each(partial(self._at_its_time, bot, partial(sweep, shards=of_bot)) for bot, of_bot in found.items())

    async def _with_sessions(self, bots: AbstractSet[str], shards: Sequence[int]) -> dict[str, list[int]]:
        """The bots among these that have open sessions in these shards, and in which shards."""
        found: dict[str, list[int]] = {}
        for shard, open_in in (await bots_with_sessions(self._pipe, shards=shards) if bots else {}).items():
            for bot in open_in & bots:
                found.setdefault(bot, []).append(shard)
        return dict(sorted(found.items()))

    async def _at_its_time(self, bot: str, sweep: Callable[[str, int], Awaitable[object]]) -> None:
        now_ms = await self._clocks.stored_ms(bot)
        if now_ms is not None:  # else no entry has started its clock
            await sweep(bot, now_ms)
