"""Entries into the ledger: which strand each belongs to, at which instant, and the receipt or refusal of each.

Promised: a receipt is given only for an entry that is committed. An entry that is refused changes nothing and fails no other.
"""

import asyncio
from collections.abc import Sequence
from functools import cache, lru_cache
from secrets import token_hex
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from app.clock import Clock
from app.config.records import BotConfig
from app.domain.entry import Entry
from app.domain.errors import DomainError
from app.domain.instants import ms_of, rfc3339
from app.domain.records import Reason, Receive, SessionOpening
from app.domain.strand import strand_of
from app.errors import AdjournError, Invalid, Unavailable
from app.failpoints import failpoint
from app.ingest.wire import complete
from app.live.fold import CommandOutcome
from app.live.ledger import Ledger
from app.live.sandbox import SandboxClocks, followed_ms
from app.metrics import ENTRIES

EntryRefusal = AdjournError | DomainError

_counter_of = cache(ENTRIES.labels)

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


class Intake:
    """Takes entries of one bot at a time; every entry gets a receipt or a refusal of its own, in order."""

    def __init__(self, *, ledger: Ledger, sandboxes: SandboxClocks, clock: Clock, deadline_s: float) -> None:
        self._ledger = ledger
        self._sandboxes = sandboxes
        self._clock = clock
        self._deadline_s = deadline_s

    async def take(self, bot: BotConfig, entries: Sequence[Entry | AdjournError]) -> list[Receipt | EntryRefusal]:
        """Receipts once everything is committed. Raises `Unavailable` only if it is not known of any entry."""
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
                under_way.append(complete(error, entry))
            else:
                under_way.append((message_id, self._ledger.submit(strand, Receive(entry, message_id), at_ms=at_ms)))
        return [item if isinstance(item, Exception) else await _result(*item) for item in under_way]

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
        None if answer.closes_at_ms is None else _instant(answer.closes_at_ms),
        _instant(answer.received_at_ms),
        outcome.duplicate,
        [ClosedView(ended.session_id, ended.reason) for ended in answer.closed],
    )


@lru_cache(maxsize=4096)
def _instant(at_ms: int) -> str:
    return rfc3339(at_ms)


async def _result(message_id: str, future: asyncio.Future[CommandOutcome]) -> Receipt | EntryRefusal:
    try:
        return receipt(message_id, await future)
    except (AdjournError, DomainError) as error:
        return error


def _count(results: Sequence[Receipt | EntryRefusal]) -> None:
    for result in results:
        if isinstance(result, Receipt):
            _counter_of("duplicate" if result.duplicate else result.session).inc()
        else:
            _counter_of("refused").inc()
