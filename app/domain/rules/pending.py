"""Events that a strand waits for across its sessions, for 24 h: an agent after a hand-off (B05), a survey's answer (A08)."""

from msgspec import structs

from app.domain.instants import DAY_MS
from app.domain.records import Pending, State
from app.domain.rules.transition import Transition

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
