"""Fields of models made from the fields of records: the types, limits, descriptions and examples that stand there.

A record counts instants in milliseconds (`x_at_ms`); JSON shows them as RFC 3339 (`x_at`).
"""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from msgspec import Meta
from pydantic import Field

from app.api.fields import GivenInstant, Instant, UuidText
from app.domain.entry import END
from app.domain.session_view import description, shown_as

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
