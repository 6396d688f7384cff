"""Which problems a route may answer with, and how the OpenAPI document tells of them."""

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

PROBLEMS: dict[int | str, dict[str, Any]] = {status: {"model": Problem, "description": said} for status, said in _SAID.items()}
PRECONDITIONS: dict[int | str, dict[str, Any]] = {
    412: {"model": Problem, "description": "`If-Match` names a version that is no longer the latest"},
    428: {"model": Problem, "description": "`If-Match` is missing"},
}

_CONTENT = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_FIRST_REFUSAL = 400


def with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every refusal told as what it is, where FastAPI would name its own shape or plain JSON."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status.isdigit() and int(status) >= _FIRST_REFUSAL:
                    response["content"] = _CONTENT
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document
