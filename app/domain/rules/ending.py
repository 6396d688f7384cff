"""How a session ends, whatever the reason: its outcome, what is cleared with it (K21 to K24), and the event.

The causes are elsewhere: `signals`, `handoff`, `silence`, `starting`. The dialog's parts are cleared here and nowhere else.
"""

from msgspec import structs

from app.domain.instants import MINUTE_MS
from app.domain.records import Dialog, Ended, Outcome, Reason, Session, State
from app.domain.rules.transition import Transition

RECENT_MS = 15 * MINUTE_MS
MOST_RECENT = 64
MOST_HISTORIC_SETS = 64
MOST_HISTORIC_TAGS = 256
"""Of all historic sets together. Beyond either limit the oldest sets are dropped."""

_GIVEN_UP: frozenset[Reason] = frozenset({"abandoned", "max_duration", "interrupted"})
_UNCONTAINED_REASONS: frozenset[Reason] = frozenset({"abandoned", "interrupted"})
_UNCONTAINED_OUTCOMES: frozenset[Outcome] = frozenset({"abandoned", "dropped"})


def close(transition: Transition, session: Session, reason: Reason, *, rule: str, by: str | None = None) -> None:
    """Close `session`, the open one, now, because of the command; `by` names the entry or the key that closes it."""
    transition.ended += (Ended(session.id, reason),)
    settle(transition, closed(session, reason, rule=rule, at_ms=transition.now_ms, by=by), rule=rule, at_ms=transition.now_ms)


def closed(session: Session, reason: Reason, *, rule: str, at_ms: int, by: str | None = None) -> Session:
    """`session` as it is once it is over."""
    handed_off_at_ms = at_ms if reason == "handoff" and session.handed_off_at_ms is None else session.handed_off_at_ms
    over = structs.replace(
        session, closed_at_ms=at_ms, reason=reason, closing_rule=rule, closed_by=by, handed_off_at_ms=handed_off_at_ms
    )
    return concluded(over)


def concluded(session: Session) -> Session:
    """A closed session with its outcome and whether the bot contained it (rulings 5 and 13)."""
    outcome = session.outcome or _outcome(session)
    contained = (
        session.escalated_at_ms is None
        and session.handed_off_at_ms is None
        and session.reason not in _UNCONTAINED_REASONS
        and outcome not in _UNCONTAINED_OUTCOMES
    )
    return structs.replace(session, outcome=outcome, contained=contained)


def settle(transition: Transition, session: Session, *, rule: str, at_ms: int) -> None:
    """The strand goes on without `session`, which closed at `at_ms`."""
    transition.session = None
    transition.state = structs.replace(
        after_close(transition.state, session.reason),
        recent=(*transition.state.recent, (session.id, at_ms))[-MOST_RECENT:],
        last_session_id=session.id,
        last=session,
    )
    transition.emit("session.closed", session, at_ms=at_ms, rule=rule)


def after_close(state: State, reason: Reason | None) -> State:
    """K21: the dialog and the variables without a TTL end with the session; its tags become historic.

    "Discard" has just chosen the current tags, so they stay (K24, S03).
    """
    dialog = state.dialog
    if dialog is not None and reason == "discard":
        dialog = Dialog(tags=dialog.tags) if dialog.tags else None
    elif dialog is not None:
        historic = with_historic(dialog.historic_tags, dialog.tags)
        dialog = Dialog(historic_tags=historic) if historic else None
    variables = {name: variable for name, variable in state.variables.items() if variable.expires_at_ms is not None}
    return structs.replace(state, dialog=dialog, variables=variables)


def after_refresh(state: State) -> State:
    """K22: everything is cleared."""
    return structs.replace(state, dialog=None, variables={}, pending=None)


def after_discard_all(state: State) -> State:
    """K23: context, current and historic tags and tones are cleared."""
    return structs.replace(state, dialog=None)


def after_discard(state: State) -> State:
    """K24: the context is cleared, the last of the historic sets becomes the current one, and the historic sets are cleared."""
    dialog = state.dialog
    if dialog is None:
        return state
    last = dialog.historic_tags[-1] if dialog.historic_tags else ()
    return structs.replace(state, dialog=Dialog(tags=(last,) if isinstance(last, str) else last, tones=dialog.tones))


def with_historic(historic: tuple[tuple[str, ...] | str, ...], tags: tuple[str, ...]) -> tuple[tuple[str, ...] | str, ...]:
    """Historic sets once the set `tags` has joined them: the latest last, bounded (ruling 10)."""
    if not tags:
        return historic
    kept = (*historic, tags)[-MOST_HISTORIC_SETS:]
    while sum(1 if isinstance(each, str) else len(each) for each in kept) > MOST_HISTORIC_TAGS:
        kept = kept[1:]
    return kept


def _outcome(session: Session) -> Outcome:
    """The outcome of a session that no entry reported as resolved or escalated."""
    if session.handed_off_at_ms is not None:
        return "handed_off"
    if session.reason in _GIVEN_UP:
        return "abandoned"
    return "dropped" if session.reason == "inactivity" and session.unanswered else "completed"
