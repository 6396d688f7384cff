"""Entries into the ledger: which strand each belongs to, at which instant, and what became of it."""

import asyncio
from collections.abc import Sequence
from secrets import token_hex

from app.clock import Clock
from app.domain.entry import Entry
from app.domain.errors import DomainError
from app.domain.instants import ms_of
from app.domain.records import Receive
from app.domain.strand import strand_of
from app.errors import AdjournError, Unavailable
from app.failpoints import failpoint
from app.ingest.wire import Receipt, receipt
from app.live.directory import KnownBot
from app.live.fold import Outcome
from app.live.ledger import Ledger
from app.live.sandbox import LATEST_MS, SandboxClocks, beyond_latest
from app.metrics import ENTRIES

Refusal = AdjournError | DomainError


class Intake:
    """Takes entries of one bot at a time; every entry gets a receipt or a refusal of its own, in order."""

    def __init__(self, *, ledger: Ledger, sandboxes: SandboxClocks, clock: Clock, deadline_s: float) -> None:
        self._ledger = ledger
        self._sandboxes = sandboxes
        self._clock = clock
        self._deadline_s = deadline_s

    async def take(self, bot: KnownBot, entries: Sequence[Entry | AdjournError]) -> list[Receipt | Refusal]:
        """Receipts once everything is committed. Raises `Unavailable` only where nothing could be told at all."""
        if bot.clock_mode == "sent_at":
            entries = [_in_time(entry) for entry in entries]
        try:
            async with asyncio.timeout(self._deadline_s):
                instants = await self._instants(bot, entries)
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
        self, bot: KnownBot, entries: Sequence[Entry | AdjournError], instants: Sequence[int | None]
    ) -> list[Receipt | Refusal]:
        """All entries go to the ledger before the first is waited for, so that they share commits."""
        under_way: list[tuple[str, asyncio.Future[Outcome]] | Refusal] = []
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

    async def _instants(self, bot: KnownBot, entries: Sequence[Entry | AdjournError]) -> list[int | None]:
        """The instant of each entry in a sandbox bot's own time; None where Redis's time counts."""
        if not bot.sandbox:
            return [None] * len(entries)
        follows = bot.clock_mode == "sent_at"
        at_ms = await self._sandboxes.now_ms(bot.id, real_ms=self._clock.now_ms(), follows=follows)
        instants: list[int | None] = []
        for entry in entries:
            if follows and isinstance(entry, Entry) and entry.sent_at is not None:
                at_ms = max(at_ms, ms_of(entry.sent_at))
            instants.append(at_ms)
        return instants

    async def _move_clock(self, bot: KnownBot, instants: Sequence[int | None]) -> None:
        """After the commit, never before: a sweep must not close what an entry under way still continues."""
        last = instants[-1] if instants else None
        if last is not None and bot.clock_mode == "sent_at":
            await self._sandboxes.forward(bot.id, to_ms=last)


def _in_time(entry: Entry | AdjournError) -> Entry | AdjournError:
    """The entry, unless it would move a clock that follows entries to where none may stand."""
    if isinstance(entry, Entry) and entry.sent_at is not None and ms_of(entry.sent_at) > LATEST_MS:
        return beyond_latest("sent_at")
    return entry


async def _result(message_id: str, future: asyncio.Future[Outcome]) -> Receipt | Refusal:
    try:
        return receipt(message_id, await future)
    except (AdjournError, DomainError) as error:
        return error


def _count(results: Sequence[Receipt | Refusal]) -> None:
    for result in results:
        if isinstance(result, Receipt):
            ENTRIES.labels("duplicate" if result.duplicate else result.session).inc()
        else:
            ENTRIES.labels("refused").inc()
