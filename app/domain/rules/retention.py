"""The part of a strand's state that is kept between its sessions, how large it may be, and for how long."""

from collections.abc import Iterator

from msgspec import msgpack, structs

from app.domain.errors import StateTooLarge
from app.domain.records import State
from app.domain.rules import variables
from app.domain.rules.ending import RECENT_MS
from app.domain.rules.late import LATE_MS
from app.domain.rules.signals import NAMED_MS
from app.domain.rules.transition import WAIT_MS, Transition, over_at_ms

LARGEST_STATE = 65_536
"""Bytes of a strand's live state as encoded."""


def kept(transition: Transition) -> State:
    """The next state: without what has expired by now. The same object if nothing has changed."""
    state, now_ms = transition.state, transition.now_ms
    if transition.session is state.session and state is transition.before:
        return state
    if state.recent:
        state = structs.replace(state, recent=tuple(pair for pair in state.recent if now_ms - pair[1] < RECENT_MS))
    if state.pending is not None and now_ms >= over_at_ms(state):
        state = structs.replace(state, pending=None)
    if state.variables:
        state = structs.replace(state, variables=variables.unexpired(state.variables, now_ms))
    if state.last is not None and now_ms - (state.last.closed_at_ms or 0) >= LATE_MS:
        state = structs.replace(state, last=None)
    if state.announced:
        state = structs.replace(state, announced=tuple(each for each in state.announced if now_ms - each.at_ms < NAMED_MS))
    return structs.replace(state, session=transition.session, touched_at_ms=now_ms)


def check_size(state: State) -> None:
    """Raise `StateTooLarge` where a live state would pass its limit."""
    size = len(msgpack.encode(state))
    if size > LARGEST_STATE:
        raise StateTooLarge(size, LARGEST_STATE)


def keep_until_ms(state: State) -> int:
    """When the state may be deleted. With a session open the question does not arise, but its close will leave something."""
    if state.session is not None:
        return state.session.deadline_at_ms + LATE_MS
    return max(state.touched_at_ms, over_at_ms(state), *_ends(state))


def _ends(state: State) -> Iterator[int]:
    for _, closed_at_ms in state.recent:
        yield closed_at_ms + RECENT_MS
    if state.last is not None:
        yield (state.last.closed_at_ms or 0) + LATE_MS
    for variable in state.variables.values():
        # One without a TTL, set before its session opens, waits for it as long as anything that is expected.
        yield state.touched_at_ms + WAIT_MS if variable.expires_at_ms is None else variable.expires_at_ms
