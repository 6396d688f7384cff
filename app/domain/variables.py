"""Variables that a bot keeps with a conversation: set, deleted, expired. What a close does to them is in `clearing`."""

from collections.abc import Mapping

from app.domain.records import Variable


def unexpired(variables: Mapping[str, Variable], now_ms: int) -> dict[str, Variable]:
    """Those that live on at `now_ms`; a TTL is over at its end."""
    return {
        name: variable
        for name, variable in variables.items()
        if variable.expires_at_ms is None or now_ms < variable.expires_at_ms
    }
