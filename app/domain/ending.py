"""How a session ends, whatever the reason: what it came to, what is forgotten with it, and who is told."""

from msgspec import structs

from app.domain import clearing
from app.domain.instants import MINUTE_MS
from app.domain.outcome import conclusion
from app.domain.records import Ended, Reason, Session
from app.domain.turn import Turn

RECENT_MS = 15 * MINUTE_MS
MOST_RECENT = 64


def close(turn: Turn, session: Session, reason: Reason, *, rule: str, by: str | None = None) -> None:
    """Close `session`, the open one, now, because of the command; `by` is the id of the entry that does it."""
    turn.ended += (Ended(session.id, reason),)
    settle(turn, closed(session, reason, rule=rule, at_ms=turn.now_ms, by=by), rule=rule, at_ms=turn.now_ms)


def closed(session: Session, reason: Reason, *, rule: str, at_ms: int, by: str | None = None) -> Session:
    """What `session` is once it is over."""
    return structs.replace(
        session,
        closed_at_ms=at_ms,
        reason=reason,
        closing_rule=rule,
        closed_by=by,
        **conclusion(session, reason, at_ms),
    )


def settle(turn: Turn, session: Session, *, rule: str, at_ms: int) -> None:
    """The strand goes on without `session`, which was closed at `at_ms`."""
    turn.session = None
    turn.state = structs.replace(
        clearing.after_close(turn.state),
        recent=(*turn.state.recent, (session.id, at_ms))[-MOST_RECENT:],
        last_session_id=session.id,
    )
    turn.tell("session.closed", session, at_ms=at_ms, rule=rule)
