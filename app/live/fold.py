"""Several commands of one strand, decided one after the other and committed as one write.

It owns what a caller waits for (`PendingCommand`) and the decisions on it. It writes nothing itself.
"""

import asyncio

import structlog
from msgspec import Struct, field

from app.domain.errors import DomainError
from app.domain.records import Answer, BotRules, Command, Decision, Event, Receive, State, UnassignedEntry
from app.domain.rules.decide import decide
from app.domain.strand import Strand
from app.errors import Unavailable
from app.live.codec import UNREADABLE, decode_message, decode_state, encode

log = structlog.get_logger(__name__)

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


class PendingCommand(Struct, eq=False):
    """A command that waits for its outcome. `at_ms` is its instant, for a bot with a clock of its own."""

    strand: Strand
    command: Command
    at_ms: int | None
    future: asyncio.Future[CommandOutcome]

    def settle(self, outcome: CommandOutcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Fold(Struct, eq=False):
    """Commands of one strand on their way to one commit.

    The decisions are based on `version` and `state`; a conflict replaces both and everything is decided again.
    """

    strand: Strand
    rules: BotRules
    sandbox: bool
    pending: list[PendingCommand]
    version: str = ""
    state: State = field(default_factory=State)
    decided: list[tuple[PendingCommand, Decision]] = []
    repeated: list[tuple[PendingCommand, PendingCommand]] = []
    maybe_committed: bool = False  # an earlier try may have been executed: entries with generated ids may be repeats, too

    def decide(self, now_ms: int) -> None:
        """Decide all pending commands on `state`; a command that the domain refuses fails alone."""
        state, decided, repeated = self.state, [], []
        first: dict[str, PendingCommand] = {}
        for pending in self.pending:
            if pending.future.done():
                continue  # refused by an earlier try, or its caller no longer waits
            command = pending.command
            if isinstance(command, Receive):
                earlier = first.setdefault(command.message_id, pending)
                if earlier is not pending:
                    repeated.append((pending, earlier))
                    continue
            at_ms = now_ms if pending.at_ms is None else pending.at_ms
            try:
                decision = decide(self.strand, state, command, self.rules, at_ms)
            except DomainError as error:
                first = {message_id: known for message_id, known in first.items() if known is not pending}
                pending.fail(error)
                continue
            except Exception:
                # A bug that one conversation meets must not fail the others of its commit.
                log.exception("decision failed", bot=self.strand.bot, command=type(command).__name__)
                first = {message_id: known for message_id, known in first.items() if known is not pending}
                pending.fail(StuckConversation("the command cannot be decided; the error was logged", retry_after_s=60))
                continue
            state = decision.state
            decided.append((pending, decision))
        self.decided, self.repeated = decided, repeated

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
            pending.fail(
                StuckConversation("the state of this conversation cannot be read; the error was logged", retry_after_s=60)
            )

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
            pending.fail(
                StuckConversation("the earlier answer to this entry cannot be read; the error was logged", retry_after_s=60)
            )
