"""Entries into the ledger: which strand each belongs to, at which instant, and the receipt or refusal of each.

Promised: a receipt is given only for an entry that is committed. An entry that is refused changes nothing and fails no other.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from secrets import token_hex
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta, Struct

from app.clock import Clock
from app.config.records import BotConfig
from app.domain.entry import Entry
from app.domain.errors import DomainError
from app.domain.instants import ms_of, rfc3339
from app.domain.records import Command, Reason, Receive, SessionOpening
from app.domain.strand import strand_of
from app.errors import AdjournError, Invalid, Unavailable
from app.failpoints import failpoint
from app.ingest.wire import complete
from app.live.fold import BatchedCommand, CommandBatch, CommandOutcome, PendingCommand
from app.live.ledger import Ledger
from app.live.sandbox import SandboxClocks, followed_ms
from app.metrics import ENTRIES_TAKEN

EntryRefusal = AdjournError | DomainError

_LOOKS = 40
"""How many times in the time that an entry may take the deadlines are looked at."""

encode = msgspec.json.Encoder().encode
"""An answer's JSON."""


# Ids and instants are texts here: encoding an answer is on the path of every message. The document shows their formats.
_Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
_Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class ClosedView(Struct, frozen=True):
    """A session that an entry ended, as JSON."""

    session_id: Annotated[_Uuid, Meta(description="Id of the session.")]
    reason: Annotated[Reason, Meta(description="Why it closed.")]


class Receipt(Struct, frozen=True):
    """The answer to an entry, as JSON."""

    message_id: Annotated[str, Meta(description="Id of the entry, the bot's or the generated one.", examples=["m1"])]
    session_id: Annotated[_Uuid | None, Meta(description="Id of the session that it belongs to; null if it belongs to none.")]
    session: Annotated[
        SessionOpening, Meta(description="`opened` by this entry, `continued`, `late` (kept with a closed session), or `none`.")
    ]
    sequence: Annotated[int, Meta(description="Its place in the session, from 1; 0 without a session.", examples=[1])]
    closes_at: Annotated[
        _Instant | None, Meta(description="When the session closes if nothing more comes; null if it is closed.")
    ]
    received_at: Annotated[_Instant, Meta(description="When it was received: its instant for all rules.")]
    duplicate: Annotated[bool, Meta(description="Whether it came before: this is the first answer again.")]
    closed: Annotated[list[ClosedView], Meta(description="The sessions that it ended.")]


class Waiting(Protocol):
    """A command or a batch that waits for Redis."""

    def is_over(self) -> bool: ...

    def fail(self, error: Exception) -> None: ...


class Deadlines:
    """Fails what waits too long, by one timer for all: all may wait equally long, so they end in the order in which they came."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._waiting: deque[tuple[float, Waiting]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, waiting: Waiting) -> None:
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + self._deadline_s, waiting))
        if self._timer is None:
            self._timer = loop.call_later(self._deadline_s / _LOOKS, self._look)

    def _look(self) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        now_s = loop.time()
        while waiting:
            ends_s, first = waiting[0]
            if not first.is_over():
                if ends_s > now_s:
                    break
                first.fail(Unavailable("Redis did not answer in time", retry_after_s=1))
            waiting.popleft()
        self._timer = loop.call_later(self._deadline_s / _LOOKS, self._look) if waiting else None


class EntryCommand(PendingCommand, kw_only=True, eq=False):
    """An entry whose sender is answered by a callback, with a receipt or a refusal."""

    answer: Callable[[Receipt | Exception], None]

    def notify(self, outcome: CommandOutcome | Exception) -> None:
        failpoint("ingest.after_commit")
        result = _result(self.command, outcome)
        _count([result])
        self.answer(result)


class Intake:
    """Takes entries of one bot at a time; every entry gets a receipt or a refusal of its own, in order."""

    def __init__(self, *, ledger: Ledger, sandboxes: SandboxClocks, clock: Clock, deadline_s: float) -> None:
        self._ledger = ledger
        self._sandboxes = sandboxes
        self._clock = clock
        self._deadline_s = deadline_s
        self._deadlines = Deadlines(deadline_s)
        self._prefix = f"gen-{token_hex(8)}"
        self._generated = count()

    async def take(self, bot: BotConfig, entries: Sequence[Entry | AdjournError]) -> list[Receipt | EntryRefusal]:
        """Receipts once everything is committed. Raises `Unavailable` only if it is not known of any entry."""
        if bot.clock_mode is None:
            failpoint("ingest.before_commit")
            results = await self._submit(bot, entries, None)
            failpoint("ingest.after_commit")
        else:
            results = await self._take_in_time(bot, entries)
        _count(results)
        return results

    def start(self, bot: BotConfig, entry: Entry, answer: Callable[[Receipt | Exception], None]) -> None:
        """Take one entry of a bot in real time; `answer` is called once, with its receipt or its refusal."""
        failpoint("ingest.before_commit")
        try:
            strand = strand_of(bot.id, entry, bot.rules.policy)
        except DomainError as error:
            refusal = complete(error, entry)
            _count([refusal])
            answer(refusal)
            return
        pending = EntryCommand(strand, self._receive(entry), None, answer=answer)
        self._deadlines.watch(pending)
        self._ledger.add(pending)

    async def _take_in_time(self, bot: BotConfig, entries: Sequence[Entry | AdjournError]) -> list[Receipt | EntryRefusal]:
        """Take entries of a bot with a clock of its own."""
        try:
            async with asyncio.timeout(self._deadline_s):
                entries, instants = await self._in_time(bot, entries)
                failpoint("ingest.before_commit")
                results = await self._submit(bot, entries, instants)
                failpoint("ingest.after_commit")
                # An entry that Redis failed on is sent again, and the clock must not have passed it.
                if not any(isinstance(result, Unavailable) for result in results):
                    await self._move_clock(bot, instants)
        except TimeoutError as error:
            raise Unavailable("Redis did not answer in time", retry_after_s=1) from error
        return results

    async def _submit(
        self, bot: BotConfig, entries: Sequence[Entry | AdjournError], instants: Sequence[int | None] | None
    ) -> list[Receipt | EntryRefusal]:
        """All entries go to the ledger together, so that they share commits, and are awaited as one. No `instants`: real time."""
        batch = CommandBatch(asyncio.get_running_loop().create_future())
        results: list[BatchedCommand | EntryRefusal] = []
        for index, entry in enumerate(entries):
            if isinstance(entry, AdjournError):
                results.append(entry)
                continue
            try:
                strand = strand_of(bot.id, entry, bot.rules.policy)
            except DomainError as error:
                results.append(complete(error, entry))
            else:
                results.append(batch.add(strand, self._receive(entry), None if instants is None else instants[index]))
        await self._outcomes(batch)
        return [item if isinstance(item, Exception) else _refused_or_taken(item) for item in results]

    async def _outcomes(self, batch: CommandBatch) -> None:
        if not batch.commands:
            return
        for command in batch.commands:
            self._ledger.add(command)
        self._deadlines.watch(batch)
        await batch.future

    def _receive(self, entry: Entry) -> Receive:
        return Receive(entry, entry.message_id or f"{self._prefix}{next(self._generated):08x}")

    async def _in_time(
        self, bot: BotConfig, entries: Sequence[Entry | AdjournError]
    ) -> tuple[Sequence[Entry | AdjournError], Sequence[int | None]]:
        """The entries and their instants in the bot's own time; an entry that the bot's clock cannot follow is refused.

        An instant is None where Redis's time counts.
        """
        at_ms = await self._sandboxes.command_ms(bot.id, bot.clock_mode)
        if at_ms is None or bot.clock_mode != "sent_at":
            return entries, [at_ms] * len(entries)
        return _followed(entries, at_ms=at_ms, real_ms=self._clock.now_ms())

    async def _move_clock(self, bot: BotConfig, instants: Sequence[int | None]) -> None:
        """After the commit, never before: a sweep must not close what an entry under way still continues."""
        last = instants[-1] if instants else None
        if last is not None and bot.clock_mode == "sent_at":
            await self._sandboxes.forward(bot.id, to_ms=last)


def _followed(
    entries: Sequence[Entry | AdjournError], *, at_ms: int, real_ms: int
) -> tuple[list[Entry | AdjournError], list[int | None]]:
    """Entries and their instants by a clock that they move."""
    checked: list[Entry | AdjournError] = []
    instants: list[int | None] = []
    for entry in entries:
        try:
            if isinstance(entry, Entry):
                sent_at_ms = None if entry.sent_at is None else ms_of(entry.sent_at)
                at_ms = followed_ms(at_ms, sent_at_ms=sent_at_ms, real_ms=real_ms)
            checked.append(entry)
        except Invalid as refused:
            checked.append(refused)
        instants.append(at_ms)
    return checked, instants


def receipt(message_id: str, outcome: CommandOutcome) -> Receipt:
    """The answer to a committed entry."""
    answer = outcome.answer
    if answer is None:
        msg = "a received entry always has an answer"
        raise AssertionError(msg)
    return Receipt(
        message_id,
        answer.session_id,
        answer.session,
        answer.sequence,
        None if answer.closes_at_ms is None else rfc3339(answer.closes_at_ms),
        rfc3339(answer.received_at_ms),
        outcome.duplicate,
        [ClosedView(ended.session_id, ended.reason) for ended in answer.closed],
    )


def _result(command: Command, outcome: CommandOutcome | Exception) -> Receipt | Exception:
    if isinstance(outcome, Exception) or not isinstance(command, Receive):
        return outcome if isinstance(outcome, Exception) else AssertionError("only entries are taken here")
    return receipt(command.message_id, outcome)


def _refused_or_taken(item: BatchedCommand) -> Receipt | EntryRefusal:
    """The result of one of a batch. Raises an error that is no refusal."""
    result = _result(item.command, item.outcome or Unavailable("Redis did not answer in time", retry_after_s=1))
    if isinstance(result, Receipt | AdjournError | DomainError):
        return result
    raise result


def _count(results: Sequence[Receipt | Exception]) -> None:
    for result in results:
        if isinstance(result, Receipt):
            ENTRIES_TAKEN.add("duplicate" if result.duplicate else result.session)
        else:
            ENTRIES_TAKEN.add("refused")
