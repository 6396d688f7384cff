"""What a session came to: its outcome, and whether the bot contained it. `docs/rules.md`, ruling 5, R10."""

from app.domain.records import Outcome, Reason, Session
from app.domain.rules.transition import Changes

_GIVEN_UP: frozenset[Reason] = frozenset({"abandoned", "max_duration", "interrupted"})


def conclusion(session: Session, reason: Reason, at_ms: int) -> Changes:
    """The fields of a session that are known once it is over. Contained: without escalation or hand-off."""
    handed_off_at_ms = at_ms if reason == "handoff" and session.handed_off_at_ms is None else session.handed_off_at_ms
    return {
        "outcome": session.outcome or _outcome(reason, handed_off=handed_off_at_ms is not None),
        "contained": session.escalated_at_ms is None and handed_off_at_ms is None,
        "handed_off_at_ms": handed_off_at_ms,
    }


def _outcome(reason: Reason, *, handed_off: bool) -> Outcome:
    """Of a session of which nobody said that it was resolved or escalated."""
    if handed_off:
        return "handed_off"
    return "abandoned" if reason in _GIVEN_UP else "completed"
