"""Variables that a bot stores with a conversation or a user: their limits, and how they are set, deleted and expire.

`after_close` in `app.domain.rules.ending` deletes those without a TTL (K21).
"""

from collections.abc import Mapping

from msgspec import structs

from app.domain.errors import InvalidVariable
from app.domain.instants import DAY_MS
from app.domain.json_value import JsonCheck
from app.domain.records import DeleteVariable, SetVariable, Variable
from app.domain.rules.transition import Transition

LONGEST_NAME = 128
LONGEST_TTL_MS = 366 * DAY_MS


def put(transition: Transition, command: SetVariable) -> None:
    """Set or replace one; a TTL counts from now. Raises `InvalidVariable`."""
    check(command)
    expires_at_ms = None if command.ttl_ms is None else transition.now_ms + command.ttl_ms
    variables = {**transition.state.variables, command.name: Variable(command.value, expires_at_ms)}
    transition.state = structs.replace(transition.state, variables=variables)
    transition.grew = True


def delete(transition: Transition, command: DeleteVariable) -> None:
    if command.name in transition.state.variables:
        variables = {name: variable for name, variable in transition.state.variables.items() if name != command.name}
        transition.state = structs.replace(transition.state, variables=variables)


def unexpired(variables: Mapping[str, Variable], now_ms: int) -> dict[str, Variable]:
    """The variables that have not expired at `now_ms`; a TTL is over at its end."""
    return {
        name: variable
        for name, variable in variables.items()
        if variable.expires_at_ms is None or now_ms < variable.expires_at_ms
    }


def check(command: SetVariable) -> None:
    """Raise `InvalidVariable` for a name, a TTL or a value beyond its limits."""
    if not 1 <= len(command.name) <= LONGEST_NAME or not command.name.isprintable():
        raise InvalidVariable("name", f"a name has 1 to {LONGEST_NAME} characters, all of them printable", "choose another")
    if command.ttl_ms is not None and not 1 <= command.ttl_ms <= LONGEST_TTL_MS:
        raise InvalidVariable("ttl_s", f"a TTL is more than 0 and at most {LONGEST_TTL_MS // 1_000} seconds", "choose another")
    fault = JsonCheck().fault_as_json(command.value)
    if fault is not None:
        raise InvalidVariable("value", fault.what, fault.hint)
