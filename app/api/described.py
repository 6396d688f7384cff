"""Fields of models made from the fields of records: the types, limits, descriptions and examples that stand there.

A record counts instants in milliseconds (`x_at_ms`); JSON shows them as RFC 3339 (`x_at`).
"""

from collections.abc import Mapping
from types import GenericAlias, NoneType
from typing import Any, get_args, get_origin

from pydantic import Field

from app.api.fields import Instant, UuidText
from app.domain.session_view import description, shown_as


def described(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name to type and field, as `create_model` takes them, of the described fields of a record in an answer."""
    return {shown_as(name): (_shown_type(name, hint), _field(hint)) for name, hint in fields.items()}


def _shown_type(name: str, hint: Any) -> Any:  # noqa: ANN401 - a type
    plain, meta = get_args(hint)[0], description(hint)
    if shown_as(name) != name:
        text: Any = Instant
    elif meta and meta.extra_json_schema == {"format": "uuid"}:
        text = UuidText
    else:
        return GenericAlias(list, get_args(plain)[:1]) if get_origin(plain) is tuple else plain
    return text | None if NoneType in get_args(plain) else text


def _field(hint: Any) -> Any:  # noqa: ANN401 - as pydantic's own Field
    meta = description(hint)
    return Field(description=meta.description, examples=meta.examples) if meta else Field()
