"""The ledger: commands in, committed decisions out.

    submit ──> waiting (per shard) ──> fold per strand ──> decide ──> commit.lua ──> outcomes
                     ^                                        │ conflict: decide again on the stored state
                     └── commands that arrive during a        └ repeat: the answer given before
                         commit go out with the next

It owns the compare-and-set loop, the group commit and the cache of last states. It refuses to know any rule.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

from msgspec import Struct
from redis.exceptions import ResponseError

from app.clock import Clock, monotonic_ms
from app.domain.records import ApplyPolicy, BotRules, Close, Command, Wake
from app.domain.strand import Strand
from app.errors import AdjournError, Unavailable
from app.live import keys
from app.live.commit import Commit, CommitCall, CommitRefusal, CommitScript, Repeats, UnreadableState, VersionConflict
from app.live.fold import CommandOutcome, Fold, PendingCommand, size_of
from app.live.lua import RedisFull
from app.live.pipe import Pipe, RedisUnreachable
from app.metrics import CLOSE_LAG, CLOSED, CONFLICTS, OPENED, UNASSIGNED

_STRANDS_A_COMMIT = 200
_COMMANDS_A_FOLD = 500
_CACHE_OVERHEAD_BYTES = 500
# More would block Redis, and every caller on this process's connection; a single command goes out whatever its size.
_BYTES_A_COMMIT = 4 << 20
# Of several writers to one strand one always wins, so the loop ends; no caller waits that long.
_PATIENCE_MS = 5_000
_CLOSES = (Wake, Close, ApplyPolicy)


class BotContext(Struct, frozen=True):
    """The facts that the ledger needs of a bot: its rules, whether it has a clock of its own, the event types not to emit."""

    rules: BotRules
    sandbox: bool = False
    silent: frozenset[str] = frozenset()


class Ledger:
    """One per process. `context_of` gives what it needs of a bot, at the instant of deciding."""

    def __init__(
        self,
        *,
        pipe: Pipe,
        script: CommitScript,
        clock: Clock,
        shards: int,
        context_of: Callable[[str], BotContext],
        cache_bytes: int = 64 << 20,
    ) -> None:
        self._pipe = pipe
        self._script = script
        self._clock = clock
        self._shards = shards
        self._context_of = context_of
        self._waiting: list[list[PendingCommand]] = [[] for _ in range(shards)]
        self._writers: list[asyncio.Task[None] | None] = [None] * shards
        # States as encoded: decoded ones may take 60 times as much memory as their bytes.
        self._cache: OrderedDict[Strand, tuple[str, bytes]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes

    def submit(self, strand: Strand, command: Command, *, at_ms: int | None = None) -> asyncio.Future[CommandOutcome]:
        """The outcome of a command, once it is committed. `at_ms`: its instant, for a bot with a clock of its own.

        The future raises `Unavailable` if Redis fails (it may have been executed: submit it again with the
        same message id), or the domain's own error if the command is refused.
        """
        future: asyncio.Future[CommandOutcome] = asyncio.get_running_loop().create_future()
        shard = keys.shard_of(strand, self._shards)
        self._waiting[shard].append(PendingCommand(strand, command, at_ms, future))
        if self._writers[shard] is None:
            self._writers[shard] = asyncio.create_task(self._write(shard), name=f"ledger {shard}")
        return future

    async def stop(self) -> None:
        """Return when every command that was submitted is committed or refused."""
        while writers := [writer for writer in self._writers if writer is not None]:
            await asyncio.wait(writers)

    async def _write(self, shard: int) -> None:
        try:
            while self._waiting[shard]:
                batch, self._waiting[shard] = self._take(self._waiting[shard])
                folds = self._folds(batch)
                try:
                    await self._commit(shard, folds)
                except AdjournError as error:
                    _fail(folds, error)
                    self._refuse(shard, error, closing=_closes(batch[0]))
                except Exception:
                    _fail(folds, Unavailable("the commit failed", retry_after_s=1))
                    raise
        finally:
            self._writers[shard] = None
            if self._waiting[shard]:  # only after an unexpected error
                self._writers[shard] = asyncio.create_task(self._write(shard), name=f"ledger {shard}")

    def _refuse(self, shard: int, error: AdjournError, *, closing: bool) -> None:
        """Fail fast: reject everything queued behind a commit that failed because Redis is unreachable or full.

        A full Redis still commits closes, so then only commands of the failed commit's kind are rejected.
        """
        if not isinstance(error, RedisUnreachable | RedisFull):
            return
        waiting, self._waiting[shard] = self._waiting[shard], []
        for pending in waiting:
            if isinstance(error, RedisUnreachable) or _closes(pending) == closing:
                pending.fail(error)
            else:
                self._waiting[shard].append(pending)

    def _take(self, waiting: list[PendingCommand]) -> tuple[list[PendingCommand], list[PendingCommand]]:
        """As many as fit one commit, and the remaining ones. Closes go apart from the others: they go on when Redis is full."""
        closing = _closes(waiting[0])
        strands: set[Strand] = set()
        size = 0
        for count, pending in enumerate(waiting):
            strands.add(pending.strand)
            size += size_of(pending.command)
            too_many = len(strands) > _STRANDS_A_COMMIT or count >= _COMMANDS_A_FOLD
            if _closes(pending) != closing or too_many or (count and size > _BYTES_A_COMMIT):
                return waiting[:count], waiting[count:]
        return waiting, []

    def _folds(self, batch: list[PendingCommand]) -> list[Fold]:
        folds: dict[Strand, Fold] = {}
        for pending in batch:
            fold = folds.get(pending.strand)
            if fold is None:
                context = self._context_of(pending.strand.bot)
                fold = folds[pending.strand] = Fold(pending.strand, context.rules, context.sandbox, [])
            fold.pending.append(pending)
        return list(folds.values())

    async def _commit(self, shard: int, folds: list[Fold]) -> None:
        await self._recall(shard, folds)
        closing = _closes(folds[0].pending[0])
        until_ms = monotonic_ms() + _PATIENCE_MS
        while monotonic_ms() < until_ms:
            now_ms = self._clock.now_ms()
            for fold in folds:
                fold.decide(now_ms)
            folds = [fold for fold in folds if fold.decided]
            if not folds:
                return
            silent = [self._context_of(fold.strand.bot).silent for fold in folds]
            call = self._script.prepare(shard, folds, now_ms=now_ms, closing=closing, silent=silent)
            refused = await self._send(call, folds)
            if refused is None:
                continue  # the clock was off; the reply corrected it
            folds = self._sort_out(folds, call.commits, refused, now_ms=now_ms)
            if not folds:
                return
        _fail(folds, Unavailable("too many concurrent writers to the same conversation", retry_after_s=1))

    async def _send(self, call: CommitCall, folds: Sequence[Fold]) -> dict[int, CommitRefusal] | None:
        """One retry: if the first try was executed and only its reply lost, the second finds its own versions."""
        try:
            return await self._script.send(call)
        except Unavailable as error:
            if isinstance(error.__cause__, ResponseError | TimeoutError):
                raise
            for fold in folds:
                fold.maybe_committed = True
            return await self._script.send(call)

    def _sort_out(
        self, folds: list[Fold], commits: list[Commit], refused: dict[int, CommitRefusal], *, now_ms: int
    ) -> list[Fold]:
        """Settle the folds that are committed; return those to decide again."""
        again = []
        for index, (fold, commit) in enumerate(zip(folds, commits, strict=True)):
            match refused.get(index):
                case VersionConflict(version, value) if version != commit.version:
                    CONFLICTS.inc()
                    if fold.base_on(version, value):
                        again.append(fold)
                case UnreadableState():
                    fold.give_up()
                case Repeats(stored):
                    fold.drop_repeats(stored)
                    if fold.pending:
                        again.append(fold)
                case _:
                    self._remember(fold.strand, commit)
                    fold.settle()
                    _count(fold, now_ms=now_ms)
        return again

    def _remember(self, strand: Strand, commit: Commit) -> None:
        if not commit.state:
            return  # nothing was written, so a cached state is still the last one
        known = self._cache.pop(strand, None)
        grown_by = _cached_size(strand, commit.state) if known is None else len(commit.state) - len(known[1])
        self._cache[strand] = commit.version, commit.state
        self._cached_bytes += grown_by
        while self._cache and self._cached_bytes > self._cache_bytes:
            oldest, (_, state) = self._cache.popitem(last=False)
            self._cached_bytes -= _cached_size(oldest, state)

    async def _recall(self, shard: int, folds: list[Fold]) -> None:
        """Base the folds on cached states. A strand that is not cached is taken for new, except for a close, which reads it."""
        unknown = []
        for fold in folds:
            known = self._cache.get(fold.strand)
            if known is not None:
                fold.base_on(*known)
            elif not _closes(fold.pending[0]):
                continue
            else:
                unknown.append(fold)
        if unknown:
            names = [keys.state(shard, keys.member(fold.strand)) for fold in unknown]
            for fold, stored in zip(unknown, await self._pipe.call("MGET", *names), strict=True):
                if stored:
                    fold.recall(stored)


def _count(fold: Fold, *, now_ms: int) -> None:
    for entry in fold.unassigned():
        UNASSIGNED.labels(entry.reason).inc()
    for event in fold.events():
        if event.type == "session.opened":
            OPENED.inc()
        elif event.type == "session.closed":
            CLOSED.labels(event.session.reason).inc()
            if not fold.sandbox:
                CLOSE_LAG.observe(max(now_ms - event.at_ms, 0) / 1000)


def _cached_size(strand: Strand, state: bytes) -> int:
    """About the bytes that a cached state takes: its own, those of its key, and those of the objects around them."""
    return len(state) + sum(map(len, (strand.bot, strand.conversation, strand.thread))) + _CACHE_OVERHEAD_BYTES


def _closes(pending: PendingCommand) -> bool:
    return isinstance(pending.command, _CLOSES)


def _fail(folds: list[Fold], error: Exception) -> None:
    for fold in folds:
        for pending in fold.pending:
            pending.fail(error)
