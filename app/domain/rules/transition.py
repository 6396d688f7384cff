"""A decision under way: what the rules read and change, in the order in which it happens.

Rules put the next session and state here, and emit events; `app.domain.rules.decide` makes the `Decision` of it. A strand waits
for some events across its sessions, for 24 h: an agent after a hand-off (B05), a survey's answer (A08).
"""

from typing import Any

from msgspec import Struct, structs

from app.domain.instants import DAY_MS
from app.domain.policy.model import PolicyVersion, Terms
from app.domain.records import Ended, Event, EventType, Message, Pending, Reason, Session, State, UnassignedEntry
from app.domain.strand import Strand

Changes = dict[str, Any]
"""Fields of the session that an entry changes, gathered so that the session is replaced once."""

Verdict = tuple[Reason, str]
"""Why an entry ends the open session before it counts, and the row that says so."""


class Transition(Struct):
    """`session` is the open one, if any; `terms` is the policy on its channel, or on the entry's if none is open."""

    strand: Strand
    state: State
    policy: PolicyVersion
    before: State
    now_ms: int
    session: Session | None
    terms: Terms
    messages: tuple[tuple[str, Message], ...] = ()
    events: tuple[Event, ...] = ()
    ended: tuple[Ended, ...] = ()
    unassigned: tuple[UnassignedEntry, ...] = ()
    entry_bytes: int = 0  # of the entry as JSON
    grew: bool = False  # a part of the state that its limit is about: dialog, tags, variables, metadata

    def emit(self, event: EventType, session: Session, *, at_ms: int, rule: str, data: dict[str, Any] | None = None) -> Event:
        made = Event(event, session, at_ms, rule, data)
        self.events += (made,)
        return made


WAIT_MS = DAY_MS


def expect_agent(transition: Transition) -> None:
    """The next session is with a human."""
    _expect(transition, agent_until_ms=transition.now_ms + WAIT_MS)


def expect_no_agent(transition: Transition) -> None:
    if transition.state.pending is not None:
        _expect(transition, agent_until_ms=0)


def is_agent_expected(transition: Transition) -> bool:
    return transition.state.pending is not None and transition.now_ms < transition.state.pending.agent_until_ms


def expect_survey(transition: Transition) -> None:
    """The answer may come in a later session, and the survey may have been sent after one."""
    _expect(transition, survey_until_ms=transition.now_ms + WAIT_MS)


def expect_no_survey(transition: Transition) -> None:
    _expect(transition, survey_until_ms=0)


def is_survey_expected(transition: Transition) -> bool:
    return transition.state.pending is not None and transition.now_ms < transition.state.pending.survey_until_ms


def over_at_ms(state: State) -> int:
    """When there is nothing left to wait for; 0 if there is nothing now."""
    return 0 if state.pending is None else max(state.pending.agent_until_ms, state.pending.survey_until_ms)


def _expect(transition: Transition, **until_ms: int) -> None:
    pending = structs.replace(transition.state.pending or Pending(), **until_ms)
    transition.state = structs.replace(transition.state, pending=pending)
