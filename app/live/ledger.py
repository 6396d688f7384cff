"""The ledger: commands in, committed decisions out.

    submit ──> waiting ──> fold per strand ──> decide ──> commit.lua ──> outcomes
                  ^                               │ conflict: decide again on the stored state
                  └── commands that arrive        └ repeat: the answer given before
                      during a commit go out
                      with the next

It owns the compare-and-set loop, the group commit and the cache of last states. It refuses to know any rule.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import cast

from msgspec import Struct
from redis.exceptions import ResponseError

from app.clock import Clock, monotonic_ms
from app.domain.records import ApplyPolicy, BotRules, Close, Command, Event, Wake
from app.domain.strand import Strand
from app.errors import AdjournError, Unavailable
from app.live.commit import Commit, CommitCall, CommitRefusal, CommitScript, Repeats, UnreadableState, VersionConflict
from app.live.fold import AwaitedCommand, CommandOutcome, Fold, PendingCommand, StoredStrand, size_of, stored_strand
from app.live.lua import RedisFull
from app.live.pipe import Pipe, RedisUnreachable
from app.live.rates import OpenQuota
from app.metrics import CLOSE_LAG, CLOSED, CONFLICTS, OPENED, UNASSIGNED

# Redis executes one call while this process makes the next one ready.
_STRANDS_A_COMMIT = 64
_CALLS_AT_ONCE = 4
_COMMANDS_A_FURTHER_CALL = 8
_COMMANDS_A_FOLD = 500
_CACHE_OVERHEAD_BYTES = 800
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
        quota: OpenQuota | None = None,
    ) -> None:
        self._pipe = pipe
        self._script = script
        self._clock = clock
        self._shards = shards
        self._context_of = context_of
        self._waiting: deque[PendingCommand] = deque()
        # Strands whose commit is under way, each with the commands that arrived meanwhile.
        self._busy: dict[Strand, list[PendingCommand]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False
        # States as encoded: decoded ones may take 60 times as much memory as their bytes.
        self._cache: OrderedDict[Strand, StoredStrand] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = cache_bytes
        self._quota = quota

    def submit(self, strand: Strand, command: Command, *, at_ms: int | None = None) -> asyncio.Future[CommandOutcome]:
        """The outcome of a command, once it is committed. `at_ms`: its instant, for a bot with a clock of its own.

        The future raises `Unavailable` if Redis fails (it may have been executed: submit it again with the
        same message id), or the domain's own error if the command is refused.
        """
        future: asyncio.Future[CommandOutcome] = asyncio.get_running_loop().create_future()
        self.add(AwaitedCommand(strand, command, at_ms, future=future))
        return future

    def add(self, pending: PendingCommand) -> None:
        """Commit a command with others, and settle it: with its outcome, or with the errors that `submit` raises."""
        behind = self._busy.get(pending.strand)
        if behind is not None:
            behind.append(pending)
            return
        self._waiting.append(pending)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_calls)

    async def stop(self) -> None:
        """Return when every command that was submitted is committed or refused."""
        while self._waiting or self._calls:
            await (asyncio.wait(self._calls) if self._calls else asyncio.sleep(0))

    def _start_calls(self) -> None:
        """Send the waiting commands, all that one iteration of the event loop brought together."""
        self._scheduled = False
        while self._waiting and len(self._calls) < _CALLS_AT_ONCE:
            if self._calls and len(self._waiting) < _COMMANDS_A_FURTHER_CALL:
                break  # they go out together with those that arrive until the call under way is answered
            folds = self._take()
            if folds:
                call = asyncio.create_task(self._run(folds), name="ledger")
                self._calls.add(call)

    async def _run(self, folds: list[Fold]) -> None:
        """Commit folds, and then start the calls that waited for it."""
        try:
            await self._commit(folds)
        except AdjournError as error:
            self._refuse(error, closing=_closes(folds[0].pending[0]))
            _fail(folds, error)
        except Exception:
            _fail(folds, Unavailable("the commit failed", retry_after_s=1))
            raise
        finally:
            for fold in reversed(folds):
                self._waiting.extendleft(reversed(self._busy.pop(fold.strand)))
            self._calls.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._start_calls()

    def _refuse(self, error: AdjournError, *, closing: bool) -> None:
        """Fail fast: reject everything queued behind a commit that failed because Redis is unreachable or full.

        A full Redis still commits closes, so then only commands of the failed commit's kind are rejected.
        """
        if not isinstance(error, RedisUnreachable | RedisFull):
            return
        for queue in (self._waiting, *self._busy.values()):
            waiting = list(queue)
            queue.clear()
            for pending in waiting:
                if isinstance(error, RedisUnreachable) or _closes(pending) == closing:
                    pending.settle(error)
                else:
                    queue.append(pending)

    def _take(self) -> list[Fold]:
        """The next commands, as many as fit one commit. Closes go apart from the others: they go on when Redis is full."""
        waiting, busy = self._waiting, self._busy
        closing = _closes(waiting[0])
        folds: dict[Strand, Fold] = {}
        size = count = 0
        while waiting and _closes(waiting[0]) == closing and count < _COMMANDS_A_FOLD:
            pending = waiting[0]
            fold = folds.get(pending.strand)
            if fold is None and pending.strand in busy:
                busy[pending.strand].append(waiting.popleft())
                continue
            size += size_of(pending.command)
            if (fold is None and len(folds) >= _STRANDS_A_COMMIT) or (count and size > _BYTES_A_COMMIT):
                break
            if fold is None:
                folds[pending.strand] = self._fold(pending)
            else:
                fold.pending.append(pending)
            waiting.popleft()
            count += 1
        for strand in folds:
            busy[strand] = []
        return list(folds.values())

    def _fold(self, first: PendingCommand) -> Fold:
        strand = first.strand
        context = self._context_of(strand.bot)
        at = self._cache.get(strand) or stored_strand(strand, self._shards)
        return Fold(strand, context.rules, context.sandbox, context.silent, at, [first])

    async def _commit(self, folds: list[Fold]) -> None:
        closing = _closes(folds[0].pending[0])
        if self._quota is not None and not closing:
            await self._mark_full(folds, self._quota)
        await self._recall(folds, closing=closing)
        until_ms = monotonic_ms() + _PATIENCE_MS
        while monotonic_ms() < until_ms:
            now_ms = self._clock.now_ms()
            for fold in folds:
                fold.decide(now_ms)
            folds = [fold for fold in folds if fold.decided]
            if not folds:
                return
            call = self._script.prepare(folds, now_ms=now_ms, closing=closing)
            try:
                refused = await self._send(call, folds)
            except Unavailable as error:
                await self._commit_apart(folds, error)
                return
            if refused is None:
                continue  # the clock was off; the reply corrected it
            folds = self._sort_out(folds, call.commits, refused, now_ms=now_ms)
            if not folds:
                return
        _fail(folds, Unavailable("too many concurrent writers to the same conversation", retry_after_s=1))

    async def _mark_full(self, folds: list[Fold], quota: OpenQuota) -> None:
        """Mark the folds for which there is no room if each of those before opens a session."""
        rooms: dict[str, int] = {}
        for fold in folds:
            bot = fold.strand.bot
            room = rooms[bot] if bot in rooms else await quota.room_of(bot)
            fold.full = room <= 0
            rooms[bot] = room - 1

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

    async def _commit_apart(self, folds: list[Fold], error: Unavailable) -> None:
        """Commit each shard's folds by a call of their own: Redis stopped at a key of one shard, which concerns no other.

        Folds before it in the call are committed already; their entries are found as repeats.
        """
        shards = {fold.at.shard for fold in folds}
        if isinstance(error, RedisFull) or not isinstance(error.__cause__, ResponseError) or len(shards) == 1:
            raise error
        for shard in shards:
            part = [fold for fold in folds if fold.at.shard == shard]
            for fold in part:
                fold.maybe_committed = True
            try:
                await self._commit(part)
            except AdjournError as failed:
                _fail(part, failed)

    def _sort_out(
        self, folds: list[Fold], commits: list[Commit], refused: dict[int, CommitRefusal], *, now_ms: int
    ) -> list[Fold]:
        """Settle the folds that are committed; return those to decide again."""
        again = []
        for index, (fold, commit) in enumerate(zip(folds, commits, strict=True)):
            match refused.get(index) if refused else None:
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
                    self._remember(fold, commit)
                    fold.settle()
                    _count(fold, now_ms=now_ms)
                    if self._quota is not None and fold.state.session is None:
                        self._quota.count_opened(fold.strand.bot)
        return again

    def _remember(self, fold: Fold, commit: Commit) -> None:
        if not commit.state:
            return  # nothing was written, so a cached state is still the last one
        strand, at = fold.strand, fold.at
        if strand in self._cache:
            self._cached_bytes += len(commit.state) - len(at.state)
            self._cache.move_to_end(strand)
        else:
            self._cached_bytes += len(commit.state) + _overhead(at)
            self._cache[strand] = at
        at.version, at.state = commit.version, commit.state
        while self._cache and self._cached_bytes > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest.state) + _overhead(oldest)

    async def _recall(self, folds: list[Fold], *, closing: bool) -> None:
        """Base the folds on cached states. A strand that is not cached is taken for new, except for a close, which reads it.

        Where a session that is added would be refused, the state is read in any case: the cached state may be an old one.
        """
        unknown = [fold for fold in folds if fold.full or (closing and not fold.at.version)]
        if unknown:
            states = await self._pipe.call("MGET", *[fold.at.key for fold in unknown])
            for fold, stored in zip(unknown, states, strict=True):
                if stored:
                    fold.recall(stored)
        for fold in folds:
            if fold.at.version and not fold.full:
                fold.base_on(fold.at.version, fold.at.state)


def _count(fold: Fold, *, now_ms: int) -> None:
    for _, decision in fold.decided:
        for entry in decision.unassigned:
            UNASSIGNED.labels(entry.reason).inc()
        for event in decision.events:
            _count_event(fold, event, now_ms=now_ms)


def _count_event(fold: Fold, event: Event, *, now_ms: int) -> None:
    if event.type == "session.opened":
        OPENED.inc()
    elif event.type == "session.closed":
        CLOSED.labels(event.session.reason).inc()
        if not fold.sandbox:
            CLOSE_LAG.observe(max(now_ms - event.at_ms, 0) / 1000)


def _overhead(at: StoredStrand) -> int:
    """About the bytes that a cached state takes beside its own: those of the names, and of the objects around them."""
    return 4 * len(at.key) + _CACHE_OVERHEAD_BYTES


def _closes(pending: PendingCommand) -> bool:
    return isinstance(pending.command, _CLOSES)


def _fail(folds: list[Fold], error: Exception) -> None:
    for fold in folds:
        for pending in fold.pending:
            pending.settle(error)
