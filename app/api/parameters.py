"""Checks the names of query parameters: a misspelt or repeated filter must not answer with everything.

A parameter that holds a list may be given several times and then means any of its values; every other one is given once. A
parameter that holds an object is given once for each key, as `name.key=value` or `name[key]=value`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args, get_origin

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.domain.errors import Fault
from app.errors import Invalid

MOST_FAULTS = 20
_KEYED = re.compile(r"(\w+)(?:\[(.+)\]|\.(.+))", re.DOTALL)


def check_parameters(request: Request) -> None:
    """Raise `Invalid` with each parameter that the route does not have, or that is repeated and no list."""
    if request.query_params:
        route = request.scope["route"]
        objects = _objects(route)
        given = [name for name, _ in request.query_params.multi_items() if _keyed(name)[0] not in objects]
        known = dict(_parameters(route.dependant)) | dict.fromkeys(objects, False)
        refuse_unknown(given, known=known)


def object_of(request: Request, name: str) -> dict[str, str] | None:
    """The value of a parameter that holds an object; None if it is not given. Raise `Invalid` if it has no key, or one twice."""
    made: dict[str, str] = {}
    for given, value in request.query_params.multi_items():
        of, key = _keyed(given)
        if of != name:
            continue
        if key is None or key in made:
            fault = Fault(_plain(given), "it has no key, or the same key twice", f"give `{name}.key=value`, each key once")
            raise Invalid("the request is not valid", hint="correct what `errors` names", faults=(fault,))
        made[key] = value
    return made or None


def refuse_unknown(given: Sequence[str], *, known: dict[str, bool]) -> None:
    """Raise `Invalid` unless every given name is known. `known` says of each name whether it may be repeated."""
    faults = tuple(_faults(given, known))
    if faults:
        raise Invalid("the request is not valid", hint="correct what `errors` names", faults=faults[:MOST_FAULTS])


def _faults(given: Sequence[str], known: dict[str, bool]) -> Iterator[Fault]:
    hint = f"the parameters are {', '.join(known)}" if known else "leave it out: this route has none"
    for name, count in Counter(given).items():
        if name not in known:
            yield Fault(_plain(name), "there is no such parameter", hint)
        elif count > 1 and not known[name]:
            yield Fault(name, "it is given more than once", "give it once")


def _parameters(route: Dependant) -> Iterator[tuple[str, bool]]:
    """Names of the query parameters of a route and of its dependencies, and whether each is a list."""
    for dependency in route.dependencies:
        yield from _parameters(dependency)
    for field in route.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from ((info.alias or name, _is_list(info.annotation)) for name, info in kind.model_fields.items())
        else:
            yield field.alias, _is_list(kind)


def _objects(route: APIRoute) -> set[str]:
    """Names of a route's parameters that hold an object; FastAPI does not know such, so the route documents them itself."""
    return {each["name"] for each in (route.openapi_extra or {}).get("parameters", ()) if each.get("style") == "deepObject"}


def _keyed(given: str) -> tuple[str, str | None]:
    """The name of a parameter and, for `name.key` or `name[key]`, the key."""
    parts = _KEYED.fullmatch(given)
    return (given, None) if parts is None else (parts[1], parts[2] or parts[3])


def _is_list(kind: object) -> bool:
    return get_origin(kind) is list or any(get_origin(part) is list for part in get_args(kind))


def _plain(name: str) -> str:
    """A name may hold characters that UTF-8 cannot encode."""
    return name.encode("utf-8", "backslashreplace").decode()
