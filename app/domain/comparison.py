"""Counts one history of entries under several policies, and gives the reason of each difference. Pure, as `decide` is.

Each policy is applied to the same entries by `decide` itself, so that boundaries are where they would have been, not where the
archive has them. A session is the same under two policies if the same entry opened it. Rates are exact fractions (ruling 5, R10).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct, structs

from app.domain.entry import Entry
from app.domain.errors import DomainError
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Receive, Session, State, Wake
from app.domain.rules.decide import decide
from app.domain.strand import Strand, strand_of


class Ratio(Struct, frozen=True):
    """`part` of `whole`: 2 of 3."""

    part: int
    whole: int

    @property
    def percent(self) -> int | None:
        """66 for 2 of 3; None if `whole` is 0."""
        return None if self.whole == 0 else self.part * 100 // self.whole


SETTINGS: Mapping[str, tuple[str, ...]] = {
    "inactivity": ("method", "closing", "inactivity_minutes", "inactivity_clock", "on_handoff"),
    "returned": ("closing", "inactivity_minutes", "inactivity_clock"),
    "new_intent": ("closing", "inactivity_minutes", "inactivity_clock"),
    "superseded": ("method",),
    "handoff": ("on_handoff",),
    "escalated": ("on_escalated",),
    "resolved": ("on_resolved",),
    "survey_answered": ("on_survey_answered",),
    "discard": ("discard_closes",),
    "abandoned": ("abandon_after_hours",),
    "max_duration": ("max_duration_hours",),
    "not_counted": ("requires_bot",),
}
"""By the reason of a boundary: the settings that decide whether there is one."""

_FOREVER_MS = 1 << 45


class Line(Struct, frozen=True):
    """An entry of the history. `number` is its place in it."""

    number: int
    at_ms: int
    entry: Entry


class Counted(Struct, frozen=True):
    """A closed session under one policy. `after`: why the session before it in its strand closed; None for the first."""

    session: Session
    after: str | None


class Difference(Struct, frozen=True):
    """Sessions that one policy has more and fewer than another, on one channel and for one reason."""

    reason: str
    channel: str
    more: int
    fewer: int
    settings: dict[str, tuple[Any, Any]]  # those that differ on the channel: theirs, ours


class PolicyTotals(Struct, frozen=True):
    """How many sessions count under a policy, and how many of those in which the user took part were contained."""

    sessions: int
    interactive: int
    interactions: int
    billing_sessions: int
    contained: Ratio


class Rerun:
    """One policy's count of a history, fed line by line, with the default quota of a session."""

    def __init__(self, bot: str, policy: Policy) -> None:
        self.policy = policy
        self.refused = 0
        self._version = PolicyVersion(1, 0, policy)
        self._rules = BotRules(bot, self._version)
        self._states: dict[Strand, State] = {}
        self._found: dict[int, Counted] = {}
        self._closed: dict[Strand, str | None] = {}

    def feed(self, line: Line) -> None:
        """Apply one entry, in the order of time. An entry that the policy cannot place is counted as refused."""
        try:
            strand = strand_of(self._rules.bot, line.entry, self._version)
            self._apply(strand, Receive(line.entry, str(line.number)), line.at_ms)
        except DomainError:
            self.refused += 1

    def sessions(self) -> dict[int, Counted]:
        """Every session by the number of the entry that opened it, once nothing more comes."""
        for strand in list(self._states):
            self._apply(strand, Wake(), _FOREVER_MS)
        return self._found

    def _apply(self, strand: Strand, command: Receive | Wake, at_ms: int) -> None:
        decision = decide(strand, self._states.get(strand, State()), command, self._rules, at_ms)
        self._states[strand] = decision.state
        for event in decision.events:
            if event.type == "session.closed":
                self._found[int(event.session.opened_by)] = Counted(event.session, self._closed.get(strand))
                self._closed[strand] = event.session.reason


def totals(found: Mapping[int, Counted]) -> PolicyTotals:
    counting = [one.session for one in found.values() if _counts(one)]
    interactive = [session for session in counting if session.interactive]
    return PolicyTotals(
        sessions=len(counting),
        interactive=len(interactive),
        interactions=sum(session.interactions for session in counting),
        billing_sessions=sum(session.billing_sessions for session in counting),
        contained=Ratio(sum(bool(session.contained) for session in interactive), len(interactive)),
    )


def differences(theirs: Rerun, ours: Rerun) -> list[Difference]:
    """By reason and channel; the sums of `more` less those of `fewer` are the difference of the two counts."""
    found, known = theirs.sessions(), ours.sessions()
    more = Counter(_reasons(found, known))
    fewer = Counter(_reasons(known, found))
    return [
        Difference(reason, channel, more[reason, channel], fewer[reason, channel], _settings(reason, channel, theirs, ours))
        for reason, channel in sorted(more.keys() | fewer.keys())
    ]


def _reasons(found: Mapping[int, Counted], other: Mapping[int, Counted]) -> Iterator[tuple[str, str]]:
    """Of each session that counts in `found` and not in `other`: why it is there."""
    for number, one in found.items():
        same = other.get(number)
        if _counts(one) and not (same and _counts(same)):
            yield "not_counted" if same else one.after or "opened", one.session.channel


def _counts(one: Counted) -> bool:
    return one.session.counted and not one.session.developer


def _settings(reason: str, channel: str, theirs: Rerun, ours: Rerun) -> dict[str, tuple[Any, Any]]:
    one, other = structs.asdict(theirs.policy.on(channel)), structs.asdict(ours.policy.on(channel))
    return {name: (one[name], other[name]) for name in SETTINGS.get(reason, ()) if one[name] != other[name]}
