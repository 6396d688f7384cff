"""The dialog as the bot tells it: context, tags, tones; and "discard", which clears it."""

from msgspec import structs

from app.domain import clearing, ending
from app.domain.entry import Entry
from app.domain.records import Dialog, Session
from app.domain.signals import CONTROL_TAGS
from app.domain.turn import Turn


def learn(turn: Turn, entry: Entry) -> None:
    """Context and tags as last seen, what they displace among the historic tags, and the tones' levels as last seen."""
    if not entry.tags and entry.context is None and entry.sentiment is None:
        return
    dialog = turn.state.dialog or Dialog()
    tags = tuple(tag for tag in entry.tags if tag not in CONTROL_TAGS)
    if tags:
        displaced = tuple(tag for tag in dialog.tags if tag not in tags)
        dialog = structs.replace(dialog, tags=tags, historic_tags=clearing.with_historic(dialog.historic_tags, displaced))
    if entry.context is not None:
        dialog = structs.replace(dialog, context=entry.context)
    if entry.sentiment is not None:
        dialog = structs.replace(dialog, tones={**dialog.tones, **entry.sentiment})
    turn.state = structs.replace(turn.state, dialog=dialog)
    turn.grew = True


def discard_all(turn: Turn, _session: Session, _entry: Entry, _message_id: str) -> None:
    """K23: the same session goes on."""
    turn.state = clearing.after_discard_all(turn.state)


def discard_all_between(turn: Turn) -> None:
    """K23 where no session is open."""
    turn.state = clearing.after_discard_all(turn.state)


def discard_between(turn: Turn) -> None:
    """K24 where no session is open: only historic tags can be left, and they go."""
    turn.state = clearing.after_discard(turn.state)


def discard(turn: Turn, session: Session, _entry: Entry, message_id: str) -> None:
    """K24; and K20: it closes, unless the policy says otherwise (ruling 2)."""
    turn.state = clearing.after_discard(turn.state)
    if turn.terms.policy.discard_closes:
        ending.close(turn, session, "discard", rule="K20", by=message_id)
