"""The OpenAPI document: FastAPI's own, with the ingest routes, the domain's records, webhooks and every route's errors.

Nothing is written twice: schemas of entries, answers and policies come from the domain's records, errors from what a route
takes, examples of ids, instants and enumerations from their types. Patterns are those that RE2 and ECMAScript know, too.
"""

import asyncio
from collections.abc import Callable, Iterator
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from msgspec import Meta, Struct
from pydantic.json_schema import models_json_schema
from starlette.staticfiles import StaticFiles

from app.api.errors import PROBLEM_JSON, BadRequest, Unexpected
from app.api.fields import COMPONENT
from app.api.webhooks import EVENTS
from app.domain.entry import END, Entry
from app.domain.policy.model import Policy
from app.domain.policy.parse import PRESETS
from app.errors import (
    AdjournError,
    Forbidden,
    Invalid,
    NotFound,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from app.ingest.intake import Receipt
from app.settings import Settings

JsonSchema = dict[str, Any]

REF = "#/components/schemas/{name}"
ASSETS = "docs/assets"
_OWN_ALONE = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TAGS = {
    "ingest": "Report the entries of conversations, one by one or in batches.",
    "sessions": "Query open and closed sessions, their messages and why they are as they are; close them; add them up.",
    "analytics": "Metrics of closed sessions by time and dimensions, their definitions, and exports.",
    "conversations": "The sessions, variables and dialog context of a conversation.",
    "users": "The sessions of a user over all channels, and variables that all conversations of a user share.",
    "sandbox": "The clock of a sandbox bot, for tests that wait for no silence.",
    "bots": "Create and change bots.",
    "policies": "When a bot's sessions open and close.",
    "webhooks": "Endpoints that events are sent to, and their deliveries.",
    "keys": "API keys, their scopes and bots.",
    "audit": "Changes: who, what and when.",
    "operations": "Health, readiness, metrics, and records that could not be archived.",
}
_EXAMPLES = {
    "uuid": "01a1fd8c-6900-7dff-8007-b98ca63b51ae",
    "date-time": "2026-11-21T10:00:00.000Z",
}
_LATER = "2026-11-22T10:00:00.000Z"  # the end of a period that begins at the other example
_FASTAPI_S_OWN = {"description": "Validation Error"}
_BATCH = Settings.model_fields["max_batch_entries"].default


class EntryError(Struct, frozen=True):
    """The result of an entry that was refused."""

    error: Annotated[dict[str, Any], Meta(description="Why it was refused.")]


class BatchAnswer(Struct, frozen=True):
    """The results of a batch."""

    accepted: Annotated[int, Meta(description="How many entries were accepted.", examples=[4])]
    refused: Annotated[int, Meta(description="How many entries were refused.", examples=[1])]
    answers: Annotated[list[Any], Meta(description="The result of each entry, in order.", examples=[[]])]


def document_of(made: JsonSchema) -> JsonSchema:
    """The whole document; `made` is FastAPI's."""
    schemas: JsonSchema = made["components"]["schemas"]
    schemas.update(_domain_schemas())
    schemas.update(_event_schemas())
    document = {
        **made,
        "servers": [{"url": "/", "description": "The server that this document comes from"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": _ingest_paths() | made["paths"],
        "webhooks": {name: {"post": _webhook(name, model.__name__, str(model.__doc__))} for name, model in EVENTS.items()},
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _add_errors(path, operation)
            if method == "get" and path.startswith("/v1/") and "application/json" in operation["responses"]["200"]["content"]:
                operation["responses"]["304"] = {"description": "`If-None-Match` has its `ETag`: it has not changed"}
            _describe_success(operation, schemas)
            for response in operation["responses"].values():
                for media in response.get("content", {}).values():
                    # FastAPI adds a type to the schema of a route that returns its own response.
                    if "$ref" in media["schema"]:
                        media["schema"] = {"$ref": media["schema"]["$ref"]}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    whole: JsonSchema = _rewritten(document, _component, _pattern)
    for name, schema in _described(whole):
        _add_example(name, schema)
    return whole


def _domain_schemas() -> JsonSchema:
    """Schemas of the domain's records, and of the policy as a request writes it."""
    _, schemas = msgspec.json.schema_components((Entry, Receipt, BatchAnswer, EntryError, Policy), ref_template=REF)
    # Structs of msgspec are distinguished by a tag, which these answers do not have.
    schemas["BatchAnswer"]["properties"]["answers"]["items"] = {"anyOf": [_ref("Receipt"), _ref("EntryError")]}
    schemas["EntryError"]["properties"]["error"] = {**_ref("Problem"), "description": "Why it was refused."}
    # A component of its own, so that the two policies share it.
    channels = schemas["Policy"]["properties"]["channels"]
    schemas["ChannelOverrides"] = {
        **channels,
        "title": "ChannelOverrides",
        "examples": [{"whatsapp": {"inactivity_minutes": 1440}}],
    }
    schemas["Policy"]["properties"]["channels"] = {**_ref("ChannelOverrides"), "description": channels["description"]}
    schemas["Overrides"]["properties"] = _may_be_off(schemas["Overrides"]["properties"])
    preset = {"type": "string", "enum": list(PRESETS), "description": "Its values hold wherever no field says otherwise."}
    schemas["PolicyToSave"] = {
        "title": "PolicyToSave",
        "description": "A policy in a request: a preset's name and overrides, or fields alone; what is left out has its default.",
        "type": "object",
        "properties": {"preset": preset, **_may_be_off(schemas["Policy"]["properties"])},
        "examples": [{"preset": "kore", "inactivity_minutes": 20}],
    }
    schemas["PolicyChange"] = {
        "title": "PolicyChange",
        "description": "A JSON merge patch of a policy: null removes what was saved, and what is left out stays.",
        "type": "object",
        "properties": {name: _or_null(schema) for name, schema in schemas["PolicyToSave"]["properties"].items()},
        "examples": [{"inactivity_minutes": 20}],
    }
    for name in ("PolicyToSave", "PolicyChange", "Overrides", "ClosureMessage", "Reminder"):
        schemas[name]["additionalProperties"] = False
    return schemas


def _may_be_off(properties: JsonSchema) -> JsonSchema:
    """A request may write null, false or `off` for a text that is not wanted."""
    off = [{"type": "boolean", "const": False}, {"type": "string", "const": "off"}]
    texts = {name: properties[name] for name in ("closure_message", "reminder")}
    return properties | {name: schema | {"anyOf": [*schema["anyOf"], *off]} for name, schema in texts.items()}


def _or_null(schema: JsonSchema) -> JsonSchema:
    """The schema of a field in a merge patch. Its description stays outside."""
    outside: JsonSchema = {name: schema[name] for name in ("description", "examples", "default", "title") if name in schema}
    inner: JsonSchema = {name: value for name, value in schema.items() if name not in outside}
    kinds = inner.pop("anyOf", None) or [inner]
    return {"anyOf": [*kinds, *([] if {"type": "null"} in kinds else [{"type": "null"}])], **outside}


def _event_schemas() -> JsonSchema:
    _, made = models_json_schema(
        [(model, "serialization") for model in EVENTS.values()], ref_template=REF.replace("name", "model")
    )
    schemas: JsonSchema = made["$defs"]
    names = {event: model.__name__ for event, model in EVENTS.items()}
    schemas["WebhookEvent"] = {
        "title": "WebhookEvent",
        "description": "The body of a webhook.",
        "oneOf": [_ref(name) for name in names.values()],
        "discriminator": {"propertyName": "type", "mapping": {event: REF.format(name=name) for event, name in names.items()}},
    }
    return schemas


def _ref(name: str) -> JsonSchema:
    return {"$ref": REF.format(name=name)}


def _ingest_paths() -> JsonSchema:
    many = {"type": "array", "items": _ref("Entry"), "maxItems": _BATCH}
    return {
        "/v1/bots/{bot}/messages": {
            "post": _ingest("post_message", "Report one entry", {"application/json": {"schema": _ref("Entry")}}, "Receipt")
        },
        "/v1/bots/{bot}/messages/batch": {
            "post": _ingest(
                "post_messages",
                f"Report up to {_BATCH} entries; a bad one does not fail its neighbours",
                {"application/json": {"schema": many}},
                "BatchAnswer",
                # Not a second content type of the body: generators of clients do not know it, and drop the whole operation.
                more=" `application/x-ndjson`, one entry a line, is read, too.",
            )
        },
    }


def _ingest(name: str, summary: str, content: JsonSchema, answer: str, *, more: str = "") -> JsonSchema:
    return {
        "operationId": name,
        "summary": summary,
        "description": f"{summary}. An entry with a receipt is committed.{more}",
        "tags": ["ingest"],
        "security": [{"HTTPBearer": []}],
        "parameters": [
            {
                "name": "bot",
                "in": "path",
                "required": True,
                "description": "Id of the bot.",
                "schema": {"type": "string", "examples": ["shop"]},
            }
        ],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": {"description": "Committed", "content": {"application/json": {"schema": _ref(answer)}}}},
    }


def _webhook(event: str, model: str, words: str) -> JsonSchema:
    headers = {
        "webhook-id": "Id of the delivery: the same on every attempt and after a replay.",
        "webhook-timestamp": "When this attempt was sent, in s since the epoch.",
        "webhook-signature": "Signatures of id, timestamp and body, by Standard Webhooks.",
    }
    examples = (_EXAMPLES["uuid"], "1795219200", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=")
    return {
        "operationId": f"on_{event.replace('.', '_')}",
        "summary": words,
        "tags": ["webhooks"],
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string", "examples": [one]}}
            for (name, text), one in zip(headers.items(), examples, strict=True)
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(model)}}},
        "responses": {"2XX": {"description": "Delivered. Any other answer is a failure and is retried."}},
    }


def _add_errors(path: str, operation: JsonSchema) -> None:
    """Add the errors that follow from what an operation takes, and give each the one shape of problem details."""
    responses = operation["responses"]
    for kind in _errors(path, operation):
        if responses.get(str(kind.status), _FASTAPI_S_OWN)["description"] == _FASTAPI_S_OWN["description"]:
            responses[str(kind.status)] = {"description": kind.title}
    for status, response in responses.items():
        if status >= str(BadRequest.status) and "Readiness" not in str(response.get("content")):
            response["content"] = {PROBLEM_JSON: {"schema": _ref("Problem")}}
    if "security" in operation:
        wait = {"description": "Seconds to wait before a retry.", "schema": {"type": "integer", "examples": [2]}}
        for kind in (RateLimited, Unavailable):
            responses[str(kind.status)]["headers"] = {"Retry-After": wait}
    operation["responses"] = dict(sorted(responses.items()))


def _errors(path: str, operation: JsonSchema) -> Iterator[type[AdjournError]]:
    yield Unexpected
    if "security" in operation:
        # The check of a key also checks the names of query parameters.
        yield from (Unauthenticated, Forbidden, Invalid, RateLimited, Unavailable)
    if operation.get("parameters"):
        yield Invalid
    if "{" in path or any(parameter["name"] == "bot" for parameter in operation.get("parameters", ())):
        yield NotFound
    if "requestBody" in operation:
        yield from (BadRequest, TooLarge, UnsupportedMedia)


def _describe_success(operation: JsonSchema, schemas: JsonSchema) -> None:
    for status, response in operation["responses"].items():
        if response["description"] == "Successful Response":
            schema = response.get("content", {}).get("application/json", {}).get("schema", {})
            named = schemas.get(schema.get("$ref", "").rpartition("/")[2], {})
            response["description"] = named.get("description") or HTTPStatus(int(status)).phrase


def _rewritten(part: Any, *steps: Callable[[JsonSchema], JsonSchema]) -> Any:  # noqa: ANN401 - any JSON
    """The document with each object in it rewritten, the inner ones first."""
    if isinstance(part, list):
        return [_rewritten(item, *steps) for item in part]
    if not isinstance(part, dict):
        return part
    made = {name: _rewritten(item, *steps) for name, item in part.items()}
    for step in steps:
        made = step(made)
    return made


def _component(part: JsonSchema) -> JsonSchema:
    """Refer to the component that `app.api.fields.component` names."""
    if COMPONENT not in part:
        return part
    return _ref(part[COMPONENT]) | {name: value for name, value in part.items() if name == "description"}


def _pattern(part: JsonSchema) -> JsonSchema:
    """Python needs an end that excludes a last line break; RE2 and ECMAScript do not have it, and do not need it."""
    pattern = part.get("pattern")
    return part | {"pattern": pattern.removesuffix(END)} if isinstance(pattern, str) else part


def _described(document: JsonSchema) -> Iterator[tuple[str, JsonSchema]]:
    """Every schema of a property or parameter, with its name."""
    stack: list[Any] = [document]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if isinstance(part.get("properties"), dict):
                yield from part["properties"].items()
            if "in" in part and "schema" in part:
                yield part["name"], part["schema"]
            stack.extend(part.values())
        elif isinstance(part, list):
            stack.extend(part)


def _add_example(name: str, schema: JsonSchema) -> None:
    if "examples" not in schema and "$ref" not in schema:
        examples = list(_examples(schema))
        if examples:
            schema["examples"] = [_LATER] if name.endswith("to") and examples[0] == _EXAMPLES["date-time"] else examples[:1]


def _examples(schema: JsonSchema) -> Iterator[Any]:
    """Examples that a type itself gives, the best first."""
    if schema.get("default") is not None:
        yield schema["default"]
    for name in ("const", "minimum"):
        if name in schema:
            yield schema[name]
    yield from schema.get("enum", ())
    if schema.get("format") in _EXAMPLES:
        yield _EXAMPLES[schema["format"]]
    if schema.get("type") == "boolean":
        yield True
    if schema.get("type") == "array":
        yield from ([example] for example in _examples(schema.get("items", {})))
    for inner in schema.get("anyOf", ()):
        yield from _examples(inner)


def install_docs_page(app: FastAPI) -> None:
    """Add `/openapi.json`, and `/docs`: the document for people, by Swagger UI. Both are made once, for all callers.

    Scripts and styles come from this server (the wheel `fastapi-swagger` carries them), so the page works in a closed network,
    and a browser that holds an API key contacts no other server. `Content-Security-Policy` holds the page to that.
    """
    app.mount(f"/{ASSETS}", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    page = get_swagger_ui_html(
        # Relative to the page, so a proxy may put all of it under any path.
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon-32x32.png",
        # By default the page sends the document to a validator on the Internet.
        swagger_ui_parameters={"validatorUrl": None},
    )
    page.headers["content-security-policy"] = _OWN_ALONE

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return page

    @cache
    def document() -> Response:
        return Response(msgspec.json.encode(app.openapi()), media_type="application/json")

    making = asyncio.Lock()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        if document.cache_info().currsize:
            return document()
        # It takes a second, in which other requests are answered.
        async with making:
            return await asyncio.to_thread(document)
