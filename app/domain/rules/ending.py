"""How a session ends, whatever the reason: what it came to, what is forgotten with it, and who is told."""

from msgspec import structs

from app.domain.instants import MINUTE_MS
from app.domain.records import Ended, Reason, Session
from app.domain.rules import clearing
from app.domain.rules.outcome import conclusion
from app.domain.rules.transition import Transition

RECENT_MS = 15 * MINUTE_MS
MOST_RECENT = 64


def close(transition: Transition, session: Session, reason: Reason, *, rule: str, by: str | None = None) -> None:
    """Close `session`, the open one, now, because of the command; `by` is the id of the entry that does it."""
    transition.ended += (Ended(session.id, reason),)
    settle(transition, closed(session, reason, rule=rule, at_ms=transition.now_ms, by=by), rule=rule, at_ms=transition.now_ms)


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


def settle(transition: Transition, session: Session, *, rule: str, at_ms: int) -> None:
    """The strand goes on without `session`, which was closed at `at_ms`."""
    transition.session = None
    transition.state = structs.replace(
        clearing.after_close(transition.state),
        recent=(*transition.state.recent, (session.id, at_ms))[-MOST_RECENT:],
        last_session_id=session.id,
    )
    transition.emit("session.closed", session, at_ms=at_ms, rule=rule)
