"""Entries into the ledger: which strand each belongs to, at which instant, and what became of it."""

import asyncio
from collections.abc import Sequence
from secrets import token_hex

from app.clock import Clock
from app.config.records import BotConfig
from app.domain.entry import Entry
from app.domain.errors import DomainError
from app.domain.instants import ms_of
from app.domain.records import Receive
from app.domain.strand import strand_of
from app.errors import AdjournError, Invalid, Unavailable
from app.failpoints import failpoint
from app.ingest.wire import Receipt, receipt
from app.live.fold import CommandOutcome
from app.live.ledger import Ledger
from app.live.sandbox import SandboxClocks, followed_ms
from app.metrics import ENTRIES

EntryRefusal = AdjournError | DomainError


class Intake:
    """Takes entries of one bot at a time; every entry gets a receipt or a refusal of its own, in order."""

    def __init__(self, *, ledger: Ledger, sandboxes: SandboxClocks, clock: Clock, deadline_s: float) -> None:
        self._ledger = ledger
        self._sandboxes = sandboxes
        self._clock = clock
        self._deadline_s = deadline_s

    async def take(self, bot: BotConfig, entries: Sequence[Entry | AdjournError]) -> list[Receipt | EntryRefusal]:
        """Receipts once everything is committed. Raises `Unavailable` only where nothing could be told at all."""
        try:
            async with asyncio.timeout(self._deadline_s):
                entries, instants = await self._in_time(bot, entries)
                failpoint("ingest.before_commit")
                results = await self._submit(bot, entries, instants)
                failpoint("ingest.after_commit")
                # What Redis did not take comes again, and the clock must not have passed it by then.
                if not any(isinstance(result, Unavailable) for result in results):
                    await self._move_clock(bot, instants)
        except TimeoutError as error:
            raise Unavailable("Redis did not answer in time", retry_after_s=1) from error
        _count(results)
        return results

    async def _submit(
        self, bot: BotConfig, entries: Sequence[Entry | AdjournError], instants: Sequence[int | None]
    ) -> list[Receipt | EntryRefusal]:
        """All entries go to the ledger before the first is waited for, so that they share commits."""
        under_way: list[tuple[str, asyncio.Future[CommandOutcome]] | EntryRefusal] = []
        for entry, at_ms in zip(entries, instants, strict=True):
            if isinstance(entry, AdjournError):
                under_way.append(entry)
                continue
            message_id = entry.message_id or f"gen-{token_hex(12)}"
            try:
                strand = strand_of(bot.id, entry, bot.rules.policy)
            except DomainError as error:
                under_way.append(error)
            else:
                under_way.append((message_id, self._ledger.submit(strand, Receive(entry, message_id), at_ms=at_ms)))
        return [item if isinstance(item, Exception) else await _result(*item) for item in under_way]

    async def _in_time(
        self, bot: BotConfig, entries: Sequence[Entry | AdjournError]
    ) -> tuple[Sequence[Entry | AdjournError], Sequence[int | None]]:
        """The entries, each refused that its bot's clock cannot follow, and their instants in the bot's own time.

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
    taken: list[Entry | AdjournError] = []
    instants: list[int | None] = []
    for entry in entries:
        try:
            if isinstance(entry, Entry):
                sent_at_ms = None if entry.sent_at is None else ms_of(entry.sent_at)
                at_ms = followed_ms(at_ms, sent_at_ms=sent_at_ms, real_ms=real_ms)
            taken.append(entry)
        except Invalid as refused:
            taken.append(refused)
        instants.append(at_ms)
    return taken, instants


async def _result(message_id: str, future: asyncio.Future[CommandOutcome]) -> Receipt | EntryRefusal:
    try:
        return receipt(message_id, await future)
    except (AdjournError, DomainError) as error:
        return error


def _count(results: Sequence[Receipt | EntryRefusal]) -> None:
    for result in results:
        if isinstance(result, Receipt):
            ENTRIES.labels("duplicate" if result.duplicate else result.session).inc()
        else:
            ENTRIES.labels("refused").inc()
