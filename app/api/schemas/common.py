"""What several resources' schemas are made of: names, pages, JSON that can be kept, problems."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.domain.json_value import DEEPEST
from app.queries.cursor import LONGEST

PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
SLUG = r"^[a-z0-9][a-z0-9_.-]*$"
_LARGEST_INTEGER = 2**63

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE, description="For people; it need not be unique.")]
Slug = Annotated[str, Field(min_length=1, max_length=64, pattern=SLUG)]
Limit = Annotated[int, Field(ge=1, le=200, description="How many to give at most.")]
Cursor = Annotated[str | None, Field(max_length=LONGEST, description="`next` of the page before, with the same filters.")]
Next = Annotated[str | None, Field(description="The cursor of the page that follows; null at the end.")]


class Body(BaseModel):
    """A request's body: unknown fields are refused, and nothing is taken for what it is not."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(BaseModel):
    """A refusal (RFC 9457). `errors` names each field at fault."""

    type: str = Field(examples=["urn:adjourn:problem:not_found"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["not_found"])
    hint: str | None = None
    errors: list["ProblemFault"] | None = None
    instance: str | None = None
    request_id: str | None = None


class ProblemFault(BaseModel):
    """One thing that is wrong: where, what, and how to mend it."""

    where: str
    what: str
    hint: str


def storable(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Refuse JSON that Postgres cannot hold or that other JSON readers refuse; `within` says where it stands."""
    left = [("", value, 0)]
    while left:
        where, item, depth = left.pop()
        if depth > DEEPEST:
            raise _not_storable(where, f"it is nested deeper than {DEEPEST} levels")
        if isinstance(item, dict):
            left.extend((f"{where}.{key}".lstrip("."), inner, depth + 1) for key, inner in item.items())
            left.extend((where, key, depth) for key in item)
        elif isinstance(item, list):
            left.extend((f"{where}[{at}]", inner, depth + 1) for at, inner in enumerate(item))
        elif not _storable(item):
            raise _not_storable(where, "it holds a character or number that cannot be kept")
    return value


def _not_storable(where: str, what: str) -> PydanticCustomError:
    return PydanticCustomError("not_storable", "{what}", {"what": what, "within": where.removeprefix(".")})


def _storable(value: object) -> bool:
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -_LARGEST_INTEGER <= value < _LARGEST_INTEGER


Json = Annotated[Any, AfterValidator(storable)]
JsonObject = Annotated[dict[str, Any], AfterValidator(storable)]
