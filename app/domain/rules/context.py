"""The dialog as the bot reports it (context, tags, tones), the session's own data, and the "discard" commands that clear."""

from msgspec import structs

from app.domain.entry import Entry
from app.domain.records import Dialog, Session
from app.domain.rules import ending
from app.domain.rules.signals import CONTROL_TAGS
from app.domain.rules.transition import Transition


def learn(transition: Transition, entry: Entry) -> None:
    """The context and the set of tags as reported last, the sets before it, and the last level of each tone."""
    if not entry.tags and entry.context is None and entry.sentiment is None:
        return
    dialog = transition.state.dialog or Dialog()
    tags = tuple(tag for tag in entry.tags if tag not in CONTROL_TAGS)
    if tags:
        dialog = structs.replace(dialog, tags=tags, historic_tags=ending.with_historic(dialog.historic_tags, dialog.tags))
    if entry.context is not None:
        dialog = structs.replace(dialog, context=entry.context)
    if entry.sentiment is not None:
        dialog = structs.replace(dialog, tones={**dialog.tones, **entry.sentiment})
    transition.state = structs.replace(transition.state, dialog=dialog)
    transition.grew = True


def discard_all(transition: Transition, _session: Session, _entry: Entry, _message_id: str) -> None:
    """K23: the same session goes on."""
    transition.state = ending.after_discard_all(transition.state)


def discard_all_between(transition: Transition) -> None:
    """K23 where no session is open."""
    transition.state = ending.after_discard_all(transition.state)


def discard_between(transition: Transition) -> None:
    """K24 where no session is open."""
    transition.state = ending.after_discard(transition.state)


def discard(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """K24; and K20: it closes, unless the policy says otherwise (ruling 2)."""
    transition.state = ending.after_discard(transition.state)
    if transition.terms.policy.discard_closes:
        ending.close(transition, session, "discard", rule="K20", by=message_id)
