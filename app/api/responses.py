"""Answers: JSON that the domain makes, the errors that a route documents, and model fields made from the fields of records.

The types, limits, descriptions and examples of a record's fields stand in the record alone. A record counts instants in
milliseconds (`x_at_ms`); JSON shows them as RFC 3339 (`x_at`).
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from fastapi import Response
from msgspec import Meta, json
from pydantic import BaseModel, Field

from app.api.fields import GivenInstant, Instant, UuidText
from app.domain.entry import END
from app.domain.session_view import description, shown_as
from app.errors import AdjournError


class JsonResponse(Response):
    """JSON-like values as JSON, written by msgspec."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:  # noqa: ANN401 - any JSON
        return json.encode(content)


class ProblemFault(BaseModel):
    """One thing that is wrong with a request."""

    where: Annotated[
        str, Field(description="Path of the field, or name of the parameter or header.", examples=["inactivity_minutes"])
    ]
    what: Annotated[str, Field(description="The fault.", examples=["4 given"])]
    hint: Annotated[str, Field(description="How to correct it.", examples=["a whole number from 5 to 60 is expected"])]


class Problem(BaseModel):
    """A refusal or failure, as RFC 9457 problem details."""

    type: Annotated[
        str, Field(description="URI of the kind of problem; ends in `code`.", examples=["urn:adjourn:problem:not_found"])
    ]
    title: Annotated[str, Field(description="The kind of problem in words.", examples=["Not found"])]
    status: Annotated[int, Field(description="HTTP status.", examples=[404])]
    detail: Annotated[str, Field(description="This problem in words.", examples=["there is no bot 'shop'"])]
    code: Annotated[str, Field(description="The kind of problem, for programs.", examples=["not_found"])]
    hint: Annotated[str, Field(description="How to avoid it; left out if there is nothing to say.", examples=["add it"])] = ""
    errors: Annotated[list[ProblemFault], Field(description="Every fault that was found; left out if there is none.")] = []
    retry_after_s: Annotated[
        int | None, Field(description="Seconds to wait before a retry, as in `Retry-After`.", examples=[2])
    ] = None
    instance: Annotated[str | None, Field(description="Path of the request.", examples=["/v1/bots/shop"])] = None
    request_id: Annotated[
        str | None, Field(description="`x-request-id` of the request; the log has it too.", examples=["2c962dba58b44b329b98"])
    ] = None


def answers(model: type[BaseModel]) -> dict[str, Any]:
    """A route's arguments: its `JsonResponse` has the shape of `model`."""
    return {"response_class": JsonResponse, "response_model": None, "responses": {200: {"model": model}}}


def refuses(*kinds: type[AdjournError]) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: errors of its own. `app.api.openapi` adds the errors that every such route can have."""
    return {kind.status: {"model": Problem, "description": kind.title} for kind in kinds}


MOST_VALUES = 100
"""The most values of a repeated parameter."""


def described(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name to type and field, as `create_model` takes them, of the described fields of a record in an answer."""
    return {shown_as(name): (_shown_type(name, hint), _field(hint)) for name, hint in fields.items()}


def asked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name to type and field of the described fields of a filter in a query; each may be left out."""
    return {asked_as(name): (_asked_type(name, hint), _field(hint, default=None)) for name, hint in fields.items()}


def asked_as(name: str) -> str:
    """The name that a query has for a field of a filter: an instant `x_ms` is asked for as `x`."""
    return name.removesuffix("_ms")


def _asked_type(name: str, hint: Any) -> Any:  # noqa: ANN401 - a type
    return GivenInstant | None if asked_as(name) != name else _of_query(get_args(hint)[0])


def _of_query(kind: Any) -> Any:  # noqa: ANN401 - a type
    """The type with its limits as pydantic reads them; one value or a set of them is a list."""
    if get_origin(kind) in {Union, UnionType}:
        sets = [GenericAlias(list, (_of_query(get_args(part)[0]),)) for part in get_args(kind) if get_origin(part) is frozenset]
        return reduce(or_, [*sets, None] if sets else map(_of_query, get_args(kind)))
    if get_origin(kind) is not Annotated:
        return kind
    plain, *limits = get_args(kind)
    return Annotated[(plain, *(_limits(limit) for limit in limits))]


def _limits(meta: Meta) -> Any:  # noqa: ANN401 - as pydantic's own Field
    pattern = None if meta.pattern is None else meta.pattern.removesuffix(END)
    return Field(min_length=meta.min_length, max_length=meta.max_length, pattern=pattern)


def _shown_type(name: str, hint: Any) -> Any:  # noqa: ANN401 - a type
    plain, meta = get_args(hint)[0], description(hint)
    if shown_as(name) != name:
        text: Any = Instant
    elif meta and meta.extra_json_schema == {"format": "uuid"}:
        text = UuidText
    else:
        return GenericAlias(list, get_args(plain)[:1]) if get_origin(plain) is tuple else plain
    return text | None if NoneType in get_args(plain) else text


def _field(hint: Any, **more: Any) -> Any:  # noqa: ANN401 - as pydantic's own Field
    meta = description(hint) or Meta()
    longest = MOST_VALUES if any(get_origin(part) is frozenset for part in get_args(get_args(hint)[0])) else None
    return Field(description=meta.description, examples=meta.examples, ge=meta.ge, le=meta.le, max_length=longest, **more)
