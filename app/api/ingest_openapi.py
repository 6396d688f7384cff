"""The ingest routes in the OpenAPI document: made from the same records that decode them."""

from typing import Any

import msgspec
from msgspec import Struct

from app.domain.entry import Entry
from app.ingest.wire import Receipt

_REF = "#/components/schemas/{name}"
_PROBLEMS = {
    "401": "No valid API key",
    "403": "The key lacks the scope `ingest`",
    "404": "No such bot, or not one of the key's",
    "413": "Body or batch too large",
    "415": "Not a media type that this route reads",
    "422": "The entry cannot be read; nothing was kept",
    "503": "Redis does not take it now; send it again with the same `message_id`",
}
_REFUSED = {
    "type": "object",
    "properties": {"error": {"$ref": _REF.format(name="Problem")}},
    "required": ["error"],
}


class BatchAnswer(Struct, frozen=True):
    """One answer for each entry, in order: a receipt, or `error` with the problem of that entry."""

    accepted: int
    refused: int
    answers: list[Receipt]


def with_ingest(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the two routes added."""
    (entry, receipt, batch), components = msgspec.json.schema_components((Entry, Receipt, BatchAnswer), ref_template=_REF)
    # Structs of msgspec tell each other apart by a tag only, which the answers do not have.
    components["BatchAnswer"]["properties"]["answers"]["items"] = {"anyOf": [receipt, _REFUSED]}
    many = {"type": "array", "items": entry, "maxItems": 500}
    document["components"]["schemas"].update(components)
    document["paths"]["/v1/bots/{bot}/messages"] = {
        "post": _operation("post_message", "Report one entry", {"application/json": {"schema": entry}}, receipt)
    }
    document["paths"]["/v1/bots/{bot}/messages/batch"] = {
        "post": _operation(
            "post_messages",
            "Report up to 500 entries; a bad one does not fail its neighbours",
            {"application/json": {"schema": many}, "application/x-ndjson": {"schema": {"type": "string"}}},
            batch,
        )
    }
    return document


def _operation(name: str, summary: str, content: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"type": "object"}}}
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["ingest"],
        "security": [{"HTTPBearer": []}],
        "parameters": [{"name": "bot", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "Committed", "content": {"application/json": {"schema": answer}}},
            **{status: {"description": text, "content": problem} for status, text in _PROBLEMS.items()},
        },
    }
