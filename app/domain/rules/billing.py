"""Billing sessions (K02): each block of `billing_block_minutes`, counted from the opening, in which the user did something."""

from app.domain.entry import Entry
from app.domain.records import Session
from app.domain.rules.counting import is_interaction_by_user
from app.domain.rules.transition import Changes, Transition


def bill(transition: Transition, session: Session, entry: Entry, changes: Changes) -> None:
    """K18: what the user takes no part in costs nothing. K19: nor does what a developer takes part in."""
    if entry.developer or session.developer:
        changes["billing_sessions"] = 0
    elif transition.now_ms >= session.billed_until_ms and is_interaction_by_user(entry):
        block_ms = transition.terms.billing_block_ms
        blocks = (transition.now_ms - session.opened_at_ms) // block_ms
        changes["billed_until_ms"] = session.opened_at_ms + (blocks + 1) * block_ms
        changes["billing_sessions"] = session.billing_sessions + 1
