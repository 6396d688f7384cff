"""What a session came to: its outcome, and whether the bot contained it. `RULES.md`, ruling 5, R10."""

from app.domain.records import Outcome, Reason, Session

_GIVEN_UP: frozenset[Reason] = frozenset({"abandoned", "max_duration", "interrupted"})


def outcome_at_close(session: Session, reason: Reason) -> Outcome:
    """What was reported counts first (the last of resolved and escalated), then a hand-off, then how the session closed."""
    if session.outcome is not None:
        return session.outcome
    if session.handed_off_at_ms is not None:
        return "handed_off"
    return "abandoned" if reason in _GIVEN_UP else "completed"


def is_contained(session: Session) -> bool:
    """Closed without escalation or hand-off: no human was needed."""
    return session.escalated_at_ms is None and session.handed_off_at_ms is None
