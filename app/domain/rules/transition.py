"""A decision under way: what the rules read and change, in the order in which it happens.

Rules put the next session and state here, and emit events; `app.domain.rules.decide` makes the `Decision` of it.
"""

from typing import Any

from msgspec import Struct

from app.domain.policy.model import PolicyVersion, Terms
from app.domain.records import Ended, Event, EventType, Message, Reason, Session, State, UnassignedEntry
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
    grew: bool = False  # a part of the state that its limit is about: dialog, tags, variables, metadata

    def emit(self, event: EventType, session: Session, *, at_ms: int, rule: str, data: dict[str, Any] | None = None) -> Event:
        made = Event(event, session, at_ms, rule, data)
        self.events += (made,)
        return made
