"""Which problems a route may answer with, for the OpenAPI document."""

from typing import Any

from app.api.schemas.common import Problem

_SAID = {
    401: "no key, or one that is not known",
    403: "the key's scopes or bots do not allow this",
    404: "there is no such thing, or it is none of yours",
    409: "what is there does not allow this",
    422: "the request says something impossible; `errors` names each field",
    503: "Redis or Postgres does not answer; `Retry-After` says when to try again",
}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": said, "content": {"application/problem+json": {}}} for status, said in _SAID.items()
}
PRECONDITIONS: dict[int | str, dict[str, Any]] = {
    412: {"model": Problem, "description": "`If-Match` names a version that is no longer the latest"},
    428: {"model": Problem, "description": "`If-Match` is missing"},
}
