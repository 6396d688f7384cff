"""Compares the sessions that must exist, derived from the acknowledged entries and the policy, with those that exist.

The rules are written down a second time here, as plainly as they can be for the policy of these scenarios (proactive closing,
the clock `any`, `session.end`): nothing of `app.domain` is used. The actual ones are read from Postgres and from
the webhook receiver; each session and each message is then lost, unexpected, double, or correct. An hour of the roll-up that
differs from its sessions, late entries included, is unexpected.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console

from app import stats
from app.archive.rollup import RollUp
from tests.faults.installation import SILENCE_MS, Installation
from tests.faults.talk import Log, Said
from tests.receiver import Received

_SESSIONS = """
    SELECT s.id::text AS id, s.bot_id AS bot, s.user_id AS "user", s.reason, s.continuation_of::text AS continuation_of,
           round(extract(epoch FROM s.opened_at) * 1000)::bigint AS opened_at_ms,
           round(extract(epoch FROM s.closed_at) * 1000)::bigint AS closed_at_ms,
           (SELECT array_agg(m.message_id ORDER BY m.sequence) FROM messages m
            WHERE m.session_id = s.id AND m.opened_at = s.opened_at AND NOT m.late) AS messages,
           (SELECT array_agg(m.message_id ORDER BY m.sequence) FROM messages m
            WHERE m.session_id = s.id AND m.opened_at = s.opened_at AND m.late) AS late,
           (SELECT array_agg(m.sequence ORDER BY m.sequence) FROM messages m
            WHERE m.session_id = s.id AND m.opened_at = s.opened_at) AS sequences
    FROM sessions s WHERE s.bot_id = ANY(:bots)
"""
_UNASSIGNED = "SELECT bot_id AS bot, message_id FROM unassigned_entries WHERE bot_id = ANY(:bots)"
DAY_MS = 24 * 60 * 60 * 1000


class Expected(Struct, frozen=True):
    """A session as it must be, without the id, which is the product's to choose."""

    bot: str
    user: str
    opened_at_ms: int
    closed_at_ms: int
    reason: str
    messages: tuple[str, ...]
    late: tuple[str, ...] = ()

    @property
    def all_messages(self) -> tuple[str, ...]:
        """In the order of their sequence: late ones come last."""
        return self.messages + self.late


class FoundSession(Struct, frozen=True):
    """A session as Postgres has it."""

    id: str
    seen: Expected
    sequences: tuple[int, ...]
    continuation_of: str | None


class Verdict(Struct, frozen=True):
    """The result of a comparison. The lists name every fault."""

    sessions: int
    messages: int
    lost: list[str]
    unexpected: list[str]
    double: list[str]
    repeats: int  # webhooks sent again under the same id, which is allowed
    late: int = 0  # entries that came after the end of their session
    unassigned: int = 0  # entries that belong to no session
    hours: int = 0  # of the roll-up, each of a bot, which were verified

    def check(self) -> None:
        wrong = {"lost": self.lost, "unexpected": self.unexpected, "double": self.double}
        assert not any(wrong.values()), {name: (len(found), found[:5]) for name, found in wrong.items()}


def expected_sessions(log: Log, *, silence_ms: int = SILENCE_MS) -> list[Expected]:
    """The sessions that the acknowledged entries make up, all closed: by silence unless an entry ended them."""
    return expectations(log, silence_ms=silence_ms)[0]


def expectations(log: Log, *, silence_ms: int = SILENCE_MS) -> tuple[list[Expected], Counter[tuple[str, str]]]:
    """The sessions, and the entries that belong to none, as bot and message id."""
    sessions: list[Expected] = []
    unassigned: Counter[tuple[str, str]] = Counter()
    for (bot, user), said in log.conversations().items():
        of_one, without = _of_one(bot, user, said, silence_ms=silence_ms)
        sessions += of_one
        unassigned.update((bot, message_id) for message_id in without)
    return sessions, unassigned


def _of_one(bot: str, user: str, said: Sequence[Said], *, silence_ms: int) -> tuple[list[Expected], list[str]]:
    """Only a message starts a session; another entry between sessions is late for the last one, for a day."""
    closed: list[Expected] = []
    unassigned: list[str] = []
    current: list[Said] = []
    for item in said:
        if current and item.received_at_ms >= current[-1].received_at_ms + silence_ms:
            closed.append(_closed(bot, user, current, silence_ms=silence_ms))
            current = []
        if current or item.type == "message":
            current.append(item)
        elif closed and item.received_at_ms - closed[-1].closed_at_ms < DAY_MS:
            closed[-1] = replace(closed[-1], late=(*closed[-1].late, item.message_id))
        else:
            unassigned.append(item.message_id)
        if current and item.type == "session.end":
            closed.append(_closed(bot, user, current, silence_ms=silence_ms))
            current = []
    if current:
        closed.append(_closed(bot, user, current, silence_ms=silence_ms))
    return closed, unassigned


def _closed(bot: str, user: str, said: Sequence[Said], *, silence_ms: int) -> Expected:
    ended = said[-1].type == "session.end"
    return Expected(
        bot,
        user,
        opened_at_ms=said[0].received_at_ms,
        closed_at_ms=said[-1].received_at_ms + (0 if ended else silence_ms),
        reason="ended" if ended else "inactivity",
        messages=tuple(item.message_id for item in said),
    )


async def found_sessions(installation: Installation, bots: Iterable[str]) -> list[FoundSession]:
    return [_found(row) for row in await installation.rows(_SESSIONS, bots=list(bots))]


def _found(row: Any) -> FoundSession:  # noqa: ANN401 - a row
    messages, late = tuple(row.messages or ()), tuple(row.late or ())
    seen = Expected(row.bot, row.user, row.opened_at_ms, row.closed_at_ms, row.reason, messages, late)
    return FoundSession(row.id, seen, tuple(row.sequences or ()), row.continuation_of)


async def judge(installation: Installation, log: Log, *, delivered: bool = True, silence_ms: int = SILENCE_MS) -> Verdict:
    """All acknowledged entries must be closed and archived; with `delivered`, their webhooks must have been received too."""
    expected, wanted = expectations(log, silence_ms=silence_ms)
    bots = sorted({said.bot for said in log.said})
    found = await found_sessions(installation, bots)
    unassigned = Counter((row.bot, row.message_id) for row in await installation.rows(_UNASSIGNED, bots=bots))
    webhooks = [request for bot in bots for request in installation.receiver.at(f"/{bot}")]
    lost, unexpected = _differences(expected, found)
    double = doubles(found)
    lost += wrong_receipts(log, found)
    lost += [f"not in the list of unassigned entries: {entry}" for entry in (wanted - unassigned).elements()]
    unexpected += [f"unassigned: {entry}" for entry in (unassigned - wanted).elements()]
    hours, wrong = await rolled_up(installation)
    unexpected += wrong
    if delivered:
        undelivered, unknown, twice = deliveries(found, webhooks)
        lost, unexpected, double = lost + undelivered, unexpected + unknown, double + twice
    return Verdict(
        sessions=len(found),
        messages=sum(len(item.seen.all_messages) for item in found),
        lost=lost,
        unexpected=unexpected,
        double=double,
        repeats=len(webhooks) - len({request.id for request in webhooks}),
        late=sum(len(item.seen.late) for item in found),
        unassigned=unassigned.total(),
        hours=hours,
    )


async def rolled_up(installation: Installation) -> tuple[int, list[str]]:
    """How many hours of bots the roll-up has, and those that `adjourn stats verify` names, once none is stale."""
    async with installation.engine() as engine:
        await RollUp(engine).run_once()
    (row,) = await installation.rows("SELECT count(DISTINCT (bot_id, hour)) AS hours FROM session_hours")
    wrong = await stats.verify(installation.postgres.url, Console(quiet=True))
    return row.hours, [f"wrong in the roll-up: {bot} {hour}" for bot, hour in wrong]


def _differences(expected: Sequence[Expected], found: Sequence[FoundSession]) -> tuple[list[str], list[str]]:
    wanted, there = Counter(expected), Counter(item.seen for item in found)
    gaps = [item for item in found if item.sequences != tuple(range(1, len(item.sequences) + 1))]
    lost = [f"missing: {session}" for session in (wanted - there).elements()]
    unexpected = [f"not expected: {session}" for session in (there - wanted).elements()]
    return lost, unexpected + [f"sequence with a gap or a repeat: {item}" for item in gaps]


def doubles(found: Sequence[FoundSession]) -> list[str]:
    homes: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for item in found:
        for message_id in item.seen.all_messages:
            homes[item.seen.bot, message_id].append(item.id)
    return [f"message {message} in {sessions}" for message, sessions in homes.items() if len(sessions) > 1]


def wrong_receipts(log: Log, found: Sequence[FoundSession]) -> list[str]:
    """Every receipt must name the session that the message is in, its place there, and whether it came late."""
    places = {
        (item.seen.bot, message_id): (item.id, sequence, message_id in item.seen.late)
        for item in found
        for message_id, sequence in zip(item.seen.all_messages, item.sequences, strict=True)
    }
    wrong = []
    for said in log.said:
        answered = said.receipt["session_id"], said.receipt["sequence"], said.receipt["session"] == "late"
        place = places.get((said.bot, said.message_id))
        if answered[0] is not None and place != answered:
            wrong.append(f"{said.message_id} was answered {answered}, is at {place}")
    return wrong


def deliveries(found: Sequence[FoundSession], webhooks: Sequence[Received]) -> tuple[list[str], list[str], list[str]]:
    """Events without a webhook, webhooks without an event, events with webhooks of two ids.

    The events are the end of each session and each of its late entries.
    """
    ids: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for request in webhooks:
        ids[_event_of(request)].add(request.id)
    there = {(item.id, late) for item in found for late in ("", *item.seen.late)}
    undelivered = [f"no webhook: {event}" for event in there - set(ids)]
    unknown = [f"webhook without its event: {event}" for event in set(ids) - there]
    return undelivered, unknown, [f"{len(sent)} webhooks: {event}" for event, sent in ids.items() if len(sent) > 1]


def _event_of(request: Received) -> tuple[str, str]:
    """The session, and the id of the late entry if that is what the webhook is about."""
    data = request.event["data"]
    return data["session"]["id"], data["message"]["message_id"] if request.type == "session.updated" else ""
