"""What a strand remembers between its sessions, and for how long."""

from collections.abc import Iterator

from msgspec import structs

from app.domain import variables
from app.domain.ending import RECENT_MS
from app.domain.instants import DAY_MS
from app.domain.records import State
from app.domain.turn import Turn


def kept(turn: Turn) -> State:
    """The next state: without what has expired by now. The same object if nothing has changed."""
    state, now_ms = turn.state, turn.now_ms
    if turn.session is state.session and state is turn.before:
        return state
    if state.recent:
        state = structs.replace(state, recent=tuple(pair for pair in state.recent if now_ms - pair[1] < RECENT_MS))
    if state.pending is not None and state.pending.until_ms <= now_ms:
        state = structs.replace(state, pending=None)
    if state.variables:
        state = structs.replace(state, variables=variables.unexpired(state.variables, now_ms))
    return structs.replace(state, session=turn.session, touched_at_ms=now_ms)


def keep_until_ms(state: State) -> int:
    """When the state may be forgotten; while a session is open, not before what its close would leave behind."""
    return max(_reasons_to_keep(state), default=state.touched_at_ms)


def _reasons_to_keep(state: State) -> Iterator[int]:
    if state.session is not None:
        yield state.session.deadline_at_ms + RECENT_MS
    for _, closed_at_ms in state.recent:
        yield closed_at_ms + RECENT_MS
    if state.pending is not None:
        yield state.pending.until_ms
    for variable in state.variables.values():
        # One without a TTL that was set before its session opens waits for it as long as anything pending.
        yield state.touched_at_ms + DAY_MS if variable.expires_at_ms is None else variable.expires_at_ms
