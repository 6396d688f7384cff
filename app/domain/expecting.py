"""What a strand waits for across its sessions, for 24 h: an agent after a hand-off (B05), the answer to a survey (A08)."""

from msgspec import structs

from app.domain.instants import DAY_MS
from app.domain.records import Pending, State
from app.domain.turn import Turn

WAIT_MS = DAY_MS


def expect_agent(turn: Turn) -> None:
    """What follows is with a human."""
    _expect(turn, agent_until_ms=turn.now_ms + WAIT_MS)


def expect_no_agent(turn: Turn) -> None:
    if turn.state.pending is not None:
        _expect(turn, agent_until_ms=0)


def is_agent_expected(turn: Turn) -> bool:
    return turn.state.pending is not None and turn.now_ms < turn.state.pending.agent_until_ms


def expect_survey(turn: Turn) -> None:
    """The answer may come in a later session, and the survey may have been sent after one."""
    _expect(turn, survey_until_ms=turn.now_ms + WAIT_MS)


def expect_no_survey(turn: Turn) -> None:
    _expect(turn, survey_until_ms=0)


def is_survey_expected(turn: Turn) -> bool:
    return turn.state.pending is not None and turn.now_ms < turn.state.pending.survey_until_ms


def over_at_ms(state: State) -> int:
    """When there is nothing left to wait for; 0 if there is nothing now."""
    return 0 if state.pending is None else max(state.pending.agent_until_ms, state.pending.survey_until_ms)


def _expect(turn: Turn, **until_ms: int) -> None:
    pending = structs.replace(turn.state.pending or Pending(), **until_ms)
    turn.state = structs.replace(turn.state, pending=pending)
