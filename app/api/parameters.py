"""Refuses query parameters that a route does not have: a misspelt filter must not answer with everything."""

from collections.abc import Iterable, Iterator

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.domain.errors import Fault
from app.errors import Invalid

MOST_TOLD = 20


def check_parameters(request: Request) -> None:
    """Raises `Invalid` with each parameter that the route does not know."""
    if request.query_params:
        refuse_unknown(request.query_params, known=tuple(_names(request.scope["route"])))


def refuse_unknown(given: Iterable[str], *, known: tuple[str, ...]) -> None:
    """Raises `Invalid` unless all names that are given are known."""
    unknown = [name for name in given if name not in known]
    if unknown:
        hint = f"the parameters are {', '.join(known)}" if known else "leave it out: this route has none"
        faults = tuple(Fault(_plain(name), "there is no such parameter", hint) for name in unknown[:MOST_TOLD])
        raise Invalid("the request is not valid", hint="mend what `errors` names", faults=faults)


def _names(route: APIRoute) -> Iterator[str]:
    for field in route.dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from kind.model_fields
        else:
            yield field.alias


def _plain(name: str) -> str:
    """A name may be anything, even what no answer can be written in."""
    return name.encode("utf-8", "backslashreplace").decode()
