"""What is forgotten, and when: by a close (K21), a refresh (K22), "discard all" (K23) and "discard" (K24)."""

from msgspec import structs

from app.domain.records import Dialog, State

MOST_HISTORIC_TAGS = 64
"""The oldest are dropped beyond this."""


def after_close(state: State) -> State:
    """K21: the dialog and the variables without a TTL go with the session; its tags become historic."""
    dialog = state.dialog
    if dialog is not None:
        historic = with_historic(dialog.historic_tags, dialog.tags)
        dialog = Dialog(historic_tags=historic) if historic else None
    variables = {name: variable for name, variable in state.variables.items() if variable.expires_at_ms is not None}
    return structs.replace(state, dialog=dialog, variables=variables)


def after_refresh(state: State) -> State:
    """K22: everything goes."""
    return structs.replace(state, dialog=None, variables={}, pending=None)


def after_discard_all(state: State) -> State:
    """K23: context, tags of now and of before, and tones."""
    return structs.replace(state, dialog=None)


def after_discard(state: State) -> State:
    """K24: the context goes, and so do the historic tags but for the current ones, which are now the last of them."""
    dialog = state.dialog
    if dialog is None:
        return state
    return structs.replace(state, dialog=Dialog(historic_tags=dialog.tags, tones=dialog.tones))


def with_historic(historic: tuple[str, ...], tags: tuple[str, ...]) -> tuple[str, ...]:
    """Historic tags once `tags` have joined them: the latest last, none twice, at most `MOST_HISTORIC_TAGS`."""
    kept = (*(tag for tag in historic if tag not in tags), *tags)
    return kept[-MOST_HISTORIC_TAGS:]
