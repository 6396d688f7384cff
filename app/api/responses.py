"""Answers whose JSON is made by the domain: written by msgspec, described to the OpenAPI document by a model."""

from typing import Any

from fastapi import Response
from msgspec import json
from pydantic import BaseModel


class JsonResponse(Response):
    """JSON-like values as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:  # noqa: ANN401 - any JSON
        return json.encode(content)


def telling(model: type[BaseModel]) -> dict[str, Any]:
    """A route's arguments: it answers what `model` describes."""
    return {"response_class": JsonResponse, "response_model": None, "responses": {200: {"model": model}}}
