"""Variables that a bot keeps with a conversation: set, deleted, expired. What a close does to them is in `clearing` (K21)."""

from collections.abc import Mapping

from msgspec import json, msgpack, structs

from app.domain.errors import InvalidVariable
from app.domain.instants import DAY_MS
from app.domain.nesting import DEEPEST, too_deep
from app.domain.records import DeleteVariable, SetVariable, Variable
from app.domain.rules.transition import Transition

LONGEST_NAME = 128
LARGEST_VALUE = 8_192
LONGEST_TTL_MS = 366 * DAY_MS


def put(transition: Transition, command: SetVariable) -> None:
    """Set or replace one; a TTL counts from now. Raises `InvalidVariable`."""
    _check(command)
    expires_at_ms = None if command.ttl_ms is None else transition.now_ms + command.ttl_ms
    variables = {**transition.state.variables, command.name: Variable(command.value, expires_at_ms)}
    transition.state = structs.replace(transition.state, variables=variables)
    transition.grew = True


def delete(transition: Transition, command: DeleteVariable) -> None:
    if command.name in transition.state.variables:
        variables = {name: variable for name, variable in transition.state.variables.items() if name != command.name}
        transition.state = structs.replace(transition.state, variables=variables)


def unexpired(variables: Mapping[str, Variable], now_ms: int) -> dict[str, Variable]:
    """Those that live on at `now_ms`; a TTL is over at its end."""
    return {
        name: variable
        for name, variable in variables.items()
        if variable.expires_at_ms is None or now_ms < variable.expires_at_ms
    }


def _check(command: SetVariable) -> None:
    if not 1 <= len(command.name) <= LONGEST_NAME or not command.name.isprintable():
        raise InvalidVariable("name", f"a name has 1 to {LONGEST_NAME} characters, all of them printable", "choose another")
    if command.ttl_ms is not None and not 1 <= command.ttl_ms <= LONGEST_TTL_MS:
        raise InvalidVariable("ttl_s", f"a TTL is more than 0 and at most {LONGEST_TTL_MS // 1_000} seconds", "choose another")
    if too_deep(command.value):
        raise InvalidVariable("value", f"it is nested deeper than {DEEPEST} levels", "flatten it, or send it as a string")
    try:
        encoded = json.encode(command.value)
        msgpack.encode(command.value)
    except OverflowError as error:
        raise InvalidVariable("value", "it holds a whole number of more than 64 bits", "send it as a string") from error
    except UnicodeEncodeError as error:
        raise InvalidVariable("value", "it holds half of a surrogate pair, which is no character", "send whole ones") from error
    if len(encoded) > LARGEST_VALUE:
        raise InvalidVariable(
            "value", f"the value has {len(encoded)} bytes as JSON; at most {LARGEST_VALUE} are allowed", "split it"
        )
    if json.decode(encoded) != command.value:
        raise InvalidVariable("value", "it holds a number that JSON does not have, such as NaN", "send null or a string")
