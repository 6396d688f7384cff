"""Several commands of one strand, decided one after the other and committed as one write.

It owns the commands that wait for an outcome (`PendingCommand`) and the decisions on them. It writes nothing itself.
"""

import asyncio
from collections.abc import Iterable, Iterator

import structlog
from msgspec import Struct

from app.clock import monotonic_ms
from app.domain.errors import DomainError
from app.domain.records import Answer, BotRules, Command, Decision, Event, Receive, State, UnassignedEntry
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live import keys
from app.live.codec import UNREADABLE, decode_message, decode_state, encode
from app.live.rates import over_quota

log = structlog.get_logger(__name__)

SLICE_MS = 1.0
"""How long a process decides without doing anything else: about 64 entries, or one with a deep context."""

_NOTHING = (None, None, None)


class StuckConversation(Unavailable):
    """Permanent, and local to one conversation: do not retry, do not fail the others."""


class CommandOutcome(Struct, frozen=True, gc=False):
    """The result of a command: its answer, and whether that is the answer to an earlier entry with the same id."""

    answer: Answer | None
    duplicate: bool = False


def size_of(command: Command) -> int:
    """About how many bytes an entry's unbounded fields take; most entries have neither metadata nor a context."""
    if not isinstance(command, Receive):
        return 0
    entry = command.entry
    size = 0 if entry.text is None else len(entry.text)
    unbounded = entry.metadata, entry.context, entry.session_metadata
    if unbounded != _NOTHING:
        try:
            size += len(encode(unbounded))
        except Exception:  # noqa: BLE001 - a value that cannot be encoded cannot be stored: the decision refuses it, to its sender alone
            return size
    return size


def _adds_session(before: State, command: Command, decision: Decision) -> bool:
    """Whether an entry opens a session where none was open. One that takes the place of another adds none."""
    return isinstance(command, Receive) and before.session is None and decision.state.session is not None


class PendingCommand(Struct, eq=False):
    """A command that waits for its outcome. `at_ms` is its instant, for a bot with a clock of its own.

    A subclass says in `notify` who learns of the outcome, and in `is_over` whether it still matters.
    """

    strand: Strand
    command: Command
    at_ms: int | None
    outcome: CommandOutcome | Exception | None = None

    def is_over(self) -> bool:
        """Whether it has its outcome, or its caller no longer waits."""
        return self.outcome is not None

    def settle(self, outcome: CommandOutcome | Exception) -> None:
        """Give it its outcome; a later one changes nothing."""
        if self.outcome is None:
            self.outcome = outcome
            self.notify(outcome)

    def fail(self, error: Exception) -> None:
        self.settle(error)

    def notify(self, outcome: CommandOutcome | Exception) -> None:
        """Called once, with the outcome."""
        raise NotImplementedError


class AwaitedCommand(PendingCommand, kw_only=True, eq=False):
    """A command whose caller awaits a future."""

    future: asyncio.Future[CommandOutcome]

    def is_over(self) -> bool:
        return self.future.done()

    def notify(self, outcome: CommandOutcome | Exception) -> None:
        if self.future.done():
            return
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class CommandBatch(Struct, eq=False):
    """Commands that one caller waits for together: `future` is done when each of them has its outcome."""

    future: asyncio.Future[None]
    commands: list["BatchedCommand"] = []
    remaining: int = 0

    def add(self, strand: Strand, command: Command, at_ms: int | None) -> "BatchedCommand":
        """One more, to be submitted once all are added."""
        added = BatchedCommand(strand, command, at_ms, batch=self)
        self.commands.append(added)
        self.remaining += 1
        return added

    def is_over(self) -> bool:
        return self.future.done()

    def fail(self, error: Exception) -> None:
        """End the waiting for all of them."""
        if not self.future.done():
            self.future.set_exception(error)


class BatchedCommand(PendingCommand, kw_only=True, eq=False):
    """One of a batch; its outcome, or its error, stays with it."""

    batch: CommandBatch

    def is_over(self) -> bool:
        return self.outcome is not None or self.batch.future.done()

    def notify(self, outcome: CommandOutcome | Exception) -> None:
        del outcome
        batch = self.batch
        batch.remaining -= 1
        if not batch.remaining and not batch.future.done():
            batch.future.set_result(None)


class StoredStrand(Struct, eq=False, gc=False):
    """Where a strand is stored, and the version and the encoded state that this process last saw there.

    `member_at`: where the strand begins in the name of its state, in bytes from 1.
    """

    shard: int
    key: str
    member_at: int
    version: str = ""
    state: bytes = b""
    session: str = ""
    messages_key: str = ""

    def messages(self, session: str) -> str:
        """The name of the message hash of the open session, made once a session."""
        if session != self.session:
            self.session, self.messages_key = session, keys.messages(self.shard, session)
        return self.messages_key


def stored_strand(strand: Strand, shards: int) -> StoredStrand:
    """Where a strand is stored, of which this process knows nothing yet."""
    shard, member = keys.shard_of(strand, shards), keys.member(strand)
    key = keys.state(shard, member)
    return StoredStrand(shard, key, len(key.encode()) - len(member.encode()) + 1)


class Fold(Struct, eq=False):
    """Commands of one strand on their way to one commit.

    The decisions are based on `version` and `state`; a conflict replaces both and everything is decided again.
    """

    strand: Strand
    rules: BotRules
    sandbox: bool
    silent: frozenset[str]  # event types not to emit
    at: StoredStrand
    pending: list[PendingCommand]
    version: str = ""
    state: State = State()
    decided: list[tuple[PendingCommand, Decision]] = []
    repeated: list[tuple[PendingCommand, PendingCommand]] = []
    left: list[PendingCommand] = []  # pending commands for which there was no time
    full: bool = False  # the bot has as many sessions open as it may
    maybe_committed: bool = False  # an earlier try may have been executed: entries with generated ids may be repeats, too

    def decide(self, now_ms: int, *, until_ms: float) -> Iterable[None]:
        """Decide all pending commands on `state`; a command that the domain refuses fails alone.

        Each item ends a slice, about a millisecond of work. Commands that are not decided when `monotonic_ms` is at `until_ms`
        are left for another fold, but for the first one.
        """
        if len(self.pending) > 1:
            return self._decide_many(now_ms, until_ms)
        (pending,) = self.pending  # nearly always
        decision = None if pending.is_over() else self._decision(self.state, pending, now_ms)
        self.decided = [] if decision is None else [(pending, decision)]
        return ()

    def _decide_many(self, now_ms: int, until_ms: float) -> Iterator[None]:
        state, decided, repeated = self.state, [], []
        first: dict[str, PendingCommand] = {}
        slice_ends_ms = monotonic_ms() + SLICE_MS
        for number, pending in enumerate(self.pending):
            if number and monotonic_ms() >= slice_ends_ms:
                if slice_ends_ms >= until_ms:
                    self.pending, self.left = self.pending[:number], self.pending[number:] + self.left
                    break
                yield
                slice_ends_ms = monotonic_ms() + SLICE_MS
            if pending.is_over():
                continue
            command = pending.command
            if isinstance(command, Receive):
                earlier = first.get(command.message_id)
                if earlier is not None:
                    repeated.append((pending, earlier))
                    continue
            decision = self._decision(state, pending, now_ms)
            if decision is None:
                continue
            if isinstance(command, Receive):
                first[command.message_id] = pending
            state = decision.state
            decided.append((pending, decision))
        self.decided, self.repeated = decided, repeated

    def _decision(self, state: State, pending: PendingCommand, now_ms: int) -> Decision | None:
        """The decision on one command; None if it failed."""
        at_ms = now_ms if pending.at_ms is None else pending.at_ms
        try:
            decision = decide(self.strand, state, pending.command, self.rules, at_ms)
            if not self.full or not _adds_session(state, pending.command, decision):
                return decision
            pending.settle(over_quota())
        except DomainError as error:
            pending.settle(error)
        except Exception:
            # A bug that one conversation meets must not fail the others of its commit.
            log.exception("decision failed", bot=self.strand.bot, command=type(pending.command).__name__)
            pending.settle(StuckConversation("the command cannot be decided; the error was logged", retry_after_s=60))
        return None

    def base_on(self, version: str, stored: bytes) -> bool:
        """Base the decisions on what Redis holds. False if it cannot be read: then every command has failed."""
        try:
            self.state = decode_state(stored) if stored else State()
        except UNREADABLE:
            self.give_up()
            return False
        self.version = version
        return True

    def recall(self, stored: bytes) -> None:
        """Base the decisions on a stored state: its version, a colon, its value."""
        version, colon, value = stored.partition(b":")
        if colon and version and version.isascii():
            self.base_on(version.decode(), value)
        else:
            self.give_up()

    def give_up(self) -> None:
        """Fail every command: the stored state cannot be read, and must not be overwritten."""
        log.error("state of a conversation unreadable", bot=self.strand.bot)
        for pending in self.pending:
            pending.settle(
                StuckConversation("the state of this conversation cannot be read; the error was logged", retry_after_s=60)
            )

    @property
    def expected(self) -> bytes:
        """The beginning of the stored value that the decisions are based on."""
        return b"%b:" % self.version.encode() if self.version else b""

    def only_message_of(self) -> str | None:
        """The open session to which the fold adds one message and nothing else; None for any other fold."""
        session = self.state.session
        if len(self.decided) != 1 or session is None:
            return None
        decision = self.decided[0][1]
        if decision.events or decision.unassigned or len(decision.messages) != 1:
            return None
        return session.id if decision.messages[0][0] == session.id else None

    def message_ids(self) -> list[str]:
        """Ids that may be repeats: those that the bot chose and, after a lost reply, the generated ones."""
        return [
            pending.command.message_id
            for pending, _ in self.decided
            if isinstance(pending.command, Receive) and (self.maybe_committed or pending.command.entry.message_id is not None)
        ]

    def earlier_sessions(self) -> list[str]:
        """Sessions whose messages may hold an earlier entry with the same id."""
        state = self.state
        sessions = [session for session, _ in state.recent]
        if state.session is not None:
            sessions.append(state.session.id)
        if state.last is not None and state.last.id not in sessions:
            sessions.append(state.last.id)
        return sessions

    def events(self) -> list[Event]:
        return [event for _, decision in self.decided for event in decision.events]

    def unassigned(self) -> list[UnassignedEntry]:
        return [entry for _, decision in self.decided for entry in decision.unassigned]

    def settle(self) -> None:
        """Give every command its outcome: the commit was made."""
        for pending, decision in self.decided:
            pending.settle(CommandOutcome(decision.answer))
        if not self.repeated:
            return
        answers = {id(pending): decision.answer for pending, decision in self.decided}
        for pending, earlier in self.repeated:
            if id(earlier) in answers:
                pending.settle(CommandOutcome(answers[id(earlier)], duplicate=True))

    def drop_repeats(self, stored: dict[str, bytes]) -> None:
        """Answer the commands whose entries are stored already, and remove them from the fold."""
        new = []
        for pending in self.pending:
            command = pending.command
            message = stored.get(command.message_id) if isinstance(command, Receive) else None
            if message is None:
                new.append(pending)
            else:
                chosen = isinstance(command, Receive) and command.entry.message_id is not None
                self._answer(pending, message, duplicate=chosen)
        self.pending = new

    def _answer(self, pending: PendingCommand, message: bytes, *, duplicate: bool) -> None:
        try:
            pending.settle(CommandOutcome(decode_message(message).answer, duplicate=duplicate))
        except UNREADABLE:
            log.exception("stored message unreadable", bot=self.strand.bot)
            pending.settle(
                StuckConversation("the earlier answer to this entry cannot be read; the error was logged", retry_after_s=60)
            )
