"""Types of fields that several resources share (names, ids, instants, JSON that can be stored), and the check of parameter names.

A type carries what the OpenAPI document says of every field that has it. Examples of ids, instants, booleans and enumerations
are derived from their types (`app.api.openapi`), so no field writes them again.

A misspelt or repeated filter must not answer with everything, so unknown names are refused. A parameter that holds a list may
be given several times and then means any of its values; every other one is given once. A parameter that holds an object is
given once for each key, as `name.key=value` or `name[key]=value`.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Any, get_args, get_origin
from uuid import UUID

from fastapi import Path, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

from app.domain.entry import ID_PATTERN, LONGEST_SLUG, SLUG_PATTERN
from app.domain.errors import Fault, InvalidPolicy
from app.domain.json_value import JsonCheck
from app.domain.policy.parse import policy_from
from app.domain.strand import LONGEST_CONVERSATION
from app.errors import MOST_FAULTS, Invalid
from app.settings import Settings

COMPONENT = "x-component"
_DATE_AND_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:")
_LARGEST_LIMIT = 10**12
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


def _as_rfc3339(value: object) -> object:
    """Refuse numbers, which pydantic would read as seconds or milliseconds since the epoch, by their size.

    An unescaped `+01:00` in a query string arrives as a space before `01:00`.
    """
    if isinstance(value, str) and _DATE_AND_TIME.match(value):
        return _LOST_PLUS.sub("+", value)
    if value is None or isinstance(value, datetime):
        return value
    raise PydanticKnownError("datetime_parsing", {"error": "it is no RFC 3339"})


GivenInstant = Annotated[AwareDatetime, BeforeValidator(_as_rfc3339), Field(strict=False)]
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

    @model_validator(mode="before")
    @classmethod
    def _with_whole_numbers(cls, given: Any) -> Any:  # noqa: ANN401 - any JSON
        """JSON has one kind of number: `60.0` is the whole number 60, and some writers of JSON write it so."""
        if not isinstance(given, dict):
            return given
        return {name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in given.items()}


class LimitOverrides(Body):
    """Limits of a bot or a key, each named as the setting in whose place it stands; null: the setting's."""

    def stored(self) -> dict[str, int]:
        """The given ones, as a row and the configuration hold them."""
        return self.model_dump(exclude_none=True)


def limit(setting: str) -> Any:  # noqa: ANN401 - what pydantic's own Field gives
    """The field of a limit, described as its setting is."""
    default = Settings.model_fields[setting]
    return Field(ge=0, le=_LARGEST_LIMIT, description=default.description, examples=[default.default])


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
