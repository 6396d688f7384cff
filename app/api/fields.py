"""Types of fields that several resources share: names, ids, instants, and JSON that can be stored.

A type carries what the OpenAPI document says of every field that has it. Examples of ids, instants, booleans and enumerations
are derived from their types (`app.api.openapi`), so no field writes them again.
"""

import re
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from app.domain.entry import ID_PATTERN, LONGEST_SLUG, SLUG_PATTERN
from app.domain.errors import InvalidPolicy
from app.domain.json_value import JsonCheck
from app.domain.policy.parse import policy_from
from app.domain.strand import LONGEST_CONVERSATION

COMPONENT = "x-component"
_LOST_PLUS = re.compile(r" (?=\d{2}:?\d{2}$)")

UuidText = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
"""An id in an answer."""
Instant = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
"""An instant in an answer: RFC 3339 in UTC with milliseconds."""
SlugText = Annotated[str, Field(min_length=1, max_length=LONGEST_SLUG, pattern=SLUG_PATTERN)]
IdText = Annotated[str, Field(min_length=1, max_length=256, pattern=ID_PATTERN)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=ID_PATTERN)]
ABOUT_NAME = Field(description="For people; need not be unique.", examples=["Shop"])
ConversationText = Annotated[str, Field(min_length=1, max_length=LONGEST_CONVERSATION, pattern=ID_PATTERN)]


def _restore_plus(value: object) -> object:
    """An unescaped `+01:00` in a query string arrives as a space before `01:00`."""
    return _LOST_PLUS.sub("+", value) if isinstance(value, str) else value


GivenInstant = Annotated[AwareDatetime, BeforeValidator(_restore_plus)]
"""An instant in a request: RFC 3339 with an offset."""

BotPath = Annotated[str, Path(description="Id of the bot.", examples=["shop"])]
ConversationPath = Annotated[
    str,
    Path(
        min_length=1,
        max_length=LONGEST_CONVERSATION,
        pattern=ID_PATTERN,
        description="Id of the conversation, percent-encoded, slashes too.",
        examples=["web:ann"],
    ),
]

UserPath = Annotated[
    str,
    Path(
        min_length=1,
        max_length=256,
        pattern=ID_PATTERN,
        description="Id of the user, percent-encoded, slashes too.",
        examples=["ann"],
    ),
]


class Body(BaseModel):
    """A request's body: unknown fields are refused, and no value is converted to another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def text_of(given: UUID | None) -> str | None:
    return None if given is None else str(given)


def storable(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Refuse JSON beyond the limits of `app.domain.json_value`; `within` says where it stands."""
    fault = JsonCheck().fault(value)
    if fault is not None:
        context = {"what": fault.what, "hint": fault.hint, "within": fault.where.lstrip(".")}
        raise PydanticCustomError("not_storable", "{what}", context)
    return value


def valid_policy(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse a policy inside a larger body with all of its faults, so that they are reported beside the body's own."""
    try:
        policy_from(value)
    except InvalidPolicy as error:
        raise PydanticCustomError("policy_faults", "the policy is not valid", {"faults": error.faults}) from None
    return value


def component(name: str) -> WithJsonSchema:
    """The schema of a record of the domain, by the name that `app.api.openapi` gives it among the document's components."""
    return WithJsonSchema({COMPONENT: name})


JsonObject = Annotated[dict[str, Any], AfterValidator(storable)]
PolicyToSave = Annotated[JsonObject, component("PolicyToSave")]
"""A policy in a request. Any JSON object is decoded: the domain then names every fault in it."""
PolicyValues = Annotated[dict[str, Any], component("Policy")]
"""A policy in an answer, with every field."""
