"""Answers: JSON that the domain makes, and problem details with the errors that a route documents."""

from typing import Annotated, Any

from fastapi import Response
from msgspec import json
from pydantic import BaseModel, Field

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
