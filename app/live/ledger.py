"""The ledger: commands in, committed decisions out.

    submit ──> waiting ──> fold per strand ──> decide ──> commit.lua ──> outcomes
                  ^                               │ conflict: decide again on the stored state
                  └── commands that arrive        └ repeat: the answer given before
                      during a commit go out
                      with the next

It owns the compare-and-set loop, the group commit and the cache of last states. It refuses to know any rule.

No bot waits for all that another has sent: bots alternate in what goes out next, each has a part of a call where several wait,
and one has two large calls under way at most. Many decisions are made in slices, between which the event loop does other work.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from typing import cast

from msgspec import Struct
from redis.exceptions import ResponseError

from app.clock import Clock, monotonic_ms
from app.domain.records import ApplyPolicy, BotRules, Close, Command, Event, Wake
from app.domain.strand import Strand
from app.errors import AdjournError, Unavailable
from app.live.commit import Commit, CommitCall, CommitRefusal, CommitScript, Repeats, UnreadableState, VersionConflict
from app.live.fold import SLICE_MS, AwaitedCommand, CommandOutcome, Fold, PendingCommand, StoredStrand, size_of, stored_strand
from app.live.lua import RedisFull
from app.live.pipe import Pipe, RedisUnreachable
from app.live.rates import OpenQuota
from app.metrics import CLOSE_LAG, CLOSED, CONFLICTS, OPENED, UNASSIGNED
from app.shares import OwnerQueues

# Redis executes one call while this process makes the next one ready.
_STRANDS_A_COMMIT = 64
_CALLS_AT_ONCE = 4
_COMMANDS_A_FURTHER_CALL = 8
_COMMANDS_A_CALL = 500
_CACHE_OVERHEAD_BYTES = 800
# More would block Redis, and every caller on this process's connection; a single command goes out whatever its size.
_BYTES_A_COMMIT = 4 << 20
# Of one bot in a call: more goes out only where no other bot waits, and is a large call.
_COMMANDS_BESIDE_OTHERS = 32
_BYTES_BESIDE_OTHERS = 16 << 10  # contexts of that size take ten milliseconds to decide
_LARGE_CALLS_OF_A_BOT = 2
# Of a call: the instant that is decided with must not be far from that of the commit.
_DECIDING_MS = 150
_ITERATIONS_A_SLICE = 2
# Of several writers to one strand one always wins, so the loop ends; no caller waits that long.
_PATIENCE_MS = 5_000
_CLOSES = (Wake, Close, ApplyPolicy)


class BotContext(Struct, frozen=True):
    """The facts that the ledger needs of a bot: its rules, whether it has a clock of its own, the event types not to emit."""

    rules: BotRules
    sandbox: bool = False
    silent: frozenset[str] = frozenset()


class LedgerCall(Struct, eq=False):
    """The folds of one call; `large`: the bots that have more in it than their part."""

    closing: bool
    folds: dict[Strand, Fold] = {}
    large: list[str] = []
    commands: int = 0
    size: int = 0  # about, in bytes

    @property
    def is_full(self) -> bool:
        return len(self.folds) >= _STRANDS_A_COMMIT or self.commands >= _COMMANDS_A_CALL or self.size >= _BYTES_A_COMMIT

    def has_room(self, size: int, *, for_fold: bool) -> bool:
        """Whether one more command fits, for a fold of its own or for one that is there. The first one does in any case."""
        if for_fold and len(self.folds) >= _STRANDS_A_COMMIT:
            return False
        return not self.commands or (self.commands < _COMMANDS_A_CALL and self.size + size <= _BYTES_A_COMMIT)


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
        self._waiting: OwnerQueues[PendingCommand] = OwnerQueues()  # by bot
        # Strands whose commit is under way, each with the commands that arrived meanwhile.
        self._busy: dict[Strand, list[PendingCommand]] = {}
        self._calls: dict[asyncio.Task[None], LedgerCall] = {}
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
        self._waiting.append(pending.strand.bot, pending)
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
            large = Counter(bot for call in self._calls.values() for bot in call.large)
            busy = [bot for bot, calls in large.items() if calls >= _LARGE_CALLS_OF_A_BOT]
            # A few go out together with those that arrive until a call under way is answered, unless that takes long.
            small = any(not call.large for call in self._calls.values())
            if not self._waiting.have(_COMMANDS_A_FURTHER_CALL if small else 1, but=busy):
                break
            call = self._take(busy)
            if call.folds:
                self._calls[asyncio.create_task(self._run(list(call.folds.values())), name="ledger")] = call

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
                self._waiting.put_back(fold.strand.bot, [*fold.left, *self._busy.pop(fold.strand)])
            del self._calls[cast("asyncio.Task[None]", asyncio.current_task())]
            self._start_calls()

    def _refuse(self, error: AdjournError, *, closing: bool) -> None:
        """Fail fast: reject everything queued behind a commit that failed because Redis is unreachable or full.

        A full Redis still commits closes, so then only commands of the failed commit's kind are rejected.
        """
        if not isinstance(error, RedisUnreachable | RedisFull):
            return
        bots = self._waiting.owners()
        for queue in (*map(self._waiting.of, bots), *self._busy.values()):
            waiting = list(queue)
            queue.clear()
            for pending in waiting:
                if isinstance(error, RedisUnreachable) or _closes(pending) == closing:
                    pending.settle(error)
                else:
                    queue.append(pending)
        for bot in bots:
            self._waiting.served(bot)

    def _take(self, busy: Collection[str]) -> LedgerCall:
        """The next commands, as many as fit one call, without those of `busy` bots.

        Closes go apart from the others: they go on when Redis is full.
        """
        bots = self._waiting.owners(but=busy)
        call = LedgerCall(closing=_closes(self._waiting.of(bots[0])[0]))
        for bot in bots:
            if call.is_full:
                break
            waiting = self._waiting.of(bot)
            if self._take_of(waiting, call, alone=len(bots) == 1) or not waiting:
                self._waiting.served(bot)
        for strand in call.folds:
            self._busy[strand] = []
        return call

    def _take_of(self, waiting: deque[PendingCommand], call: LedgerCall, *, alone: bool) -> int:
        """Take the next commands of one bot, as many as may go; returns how many."""
        commands = size = 0
        while waiting and _closes(waiting[0]) == call.closing:
            pending = waiting[0]
            fold = call.folds.get(pending.strand)
            if fold is None and pending.strand in self._busy:
                self._busy[pending.strand].append(waiting.popleft())
                continue
            added = size_of(pending.command)
            if not call.has_room(added, for_fold=fold is None) or not (alone or _is_part(commands, size + added)):
                break
            if fold is None:
                call.folds[pending.strand] = self._fold(pending)
            else:
                fold.pending.append(pending)
            waiting.popleft()
            commands, size = commands + 1, size + added
            call.commands, call.size = call.commands + 1, call.size + added
        if not _is_part(commands - 1, size):
            call.large.append(next(reversed(call.folds)).bot)
        return commands

    def _fold(self, first: PendingCommand) -> Fold:
        strand = first.strand
        context = self._context_of(strand.bot)
        at = self._cache.get(strand) or stored_strand(strand, self._shards)
        return Fold(strand, context.rules, context.sandbox, context.silent, at, [first])

    async def _decide(self, folds: list[Fold], now_ms: int) -> None:
        """Decide the folds in slices, so that many decisions hold up nothing else in this process."""
        began_ms = slice_began_ms = monotonic_ms()
        for fold in folds:
            if monotonic_ms() >= slice_began_ms + SLICE_MS:
                await _let_others_work()
                slice_began_ms = monotonic_ms()
            for _ in fold.decide(now_ms, until_ms=began_ms + _DECIDING_MS):
                await _let_others_work()
                slice_began_ms = monotonic_ms()

    async def _commit(self, folds: list[Fold]) -> None:
        closing = _closes(folds[0].pending[0])
        if self._quota is not None and not closing:
            await self._mark_full(folds, self._quota)
        await self._recall(folds, closing=closing)
        until_ms = monotonic_ms() + _PATIENCE_MS
        while monotonic_ms() < until_ms:
            now_ms = self._clock.now_ms()
            await self._decide(folds, now_ms)
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


async def _let_others_work() -> None:
    """Let requests that arrived be read and answered: iterations of the event loop, which take no time where there are none."""
    for _ in range(_ITERATIONS_A_SLICE):
        await asyncio.sleep(0)


def _is_part(commands: int, size: int) -> bool:
    """Whether a bot may add one more to so many commands beside others; `size`: of all. It may always have one."""
    return not commands or (commands < _COMMANDS_BESIDE_OTHERS and size <= _BYTES_BESIDE_OTHERS)


def _fail(folds: list[Fold], error: Exception) -> None:
    for fold in folds:
        for pending in fold.pending:
            pending.settle(error)
