"""Webhooks: endpoints with their tests and secrets, deliveries by filter, and one delivery with each attempt and its reply."""

from starlette.responses import Response

from app.console.api_calls import Json, together
from app.console.forms import as_query, value_of
from app.console.visit import Fields, Visit, in_form

DELIVERIES = "/v1/deliveries"
_WITHOUT = ("cursor", "limit")
_ENDPOINTS = 200


async def every(visit: Visit) -> Response:
    """Endpoints of all bots or of one, and deliveries by the API's own filters."""
    return await _every(visit)


async def _every(visit: Visit, given: Json | None = None, problem: Json | None = None) -> Response:
    fields = visit.document.query_fields(DELIVERIES, without=_WITHOUT)
    bot = {"bot": bot} if (bot := dict(visit.query).get("bot")) else {}
    page, found = await together(
        visit.api.get(DELIVERIES, as_query(fields, visit.query)), visit.api.get("/v1/endpoints", {**bot, "limit": _ENDPOINTS})
    )
    return visit.page(
        "webhooks.html",
        title="Webhooks",
        status=problem["status"] if problem else 200,
        endpoints=found["endpoints"],
        more_endpoints=found["next"] is not None,
        deliveries=page["deliveries"],
        next=page["next"],
        filters=fields,
        filtered=dict(visit.query),
        fields=visit.document.fields("NewEndpoint"),
        given=given or {},
        problem=problem,
    )


async def create(visit: Visit, form: Fields) -> Response:
    """Make an endpoint, and show its secret this once."""
    given = value_of(visit.document.fields("NewEndpoint"), form.multi_items())
    path = f"/v1/bots/{visit.segment(form.get('bot', ''))}/endpoints"
    reply, problem = await in_form(visit.api.call("POST", path, given))
    if reply is None:
        return await _every(visit, {**given, "bot": form.get("bot", "")}, problem)
    return await _endpoint_page(visit, reply.body, secret=reply.body["secret"])


async def endpoint(visit: Visit) -> Response:
    """One endpoint."""
    return await _endpoint_page(visit, await visit.api.get(_path(visit)))


async def change(visit: Visit, form: Fields) -> Response:
    """Enable or disable it."""
    await visit.api.call("PATCH", _path(visit), {"enabled": form.get("enabled") == "true"})
    return visit.go(f"/webhooks/endpoints/{visit.of_path('endpoint_id')}", done="changed")


async def delete(visit: Visit, _form: Fields) -> Response:
    """Delete it, with its pending deliveries."""
    await visit.api.call("DELETE", _path(visit))
    return visit.go("/webhooks", done="deleted")


async def test(visit: Visit, _form: Fields) -> Response:
    """Send it a `webhook.test` now."""
    reply = await visit.api.call("POST", f"{_path(visit)}/test")
    return await _endpoint_page(visit, await visit.api.get(_path(visit)), tested=reply.body)


async def rotate(visit: Visit, form: Fields) -> Response:
    """Sign with a new secret, for a while with both, and show it this once."""
    given = value_of(visit.document.fields("RotateSecret"), form.multi_items())
    reply, problem = await in_form(visit.api.call("POST", f"{_path(visit)}/rotate-secret", given))
    secret = None if reply is None else reply.body["secret"]
    return await _endpoint_page(visit, await visit.api.get(_path(visit)), secret=secret, problem=problem)


async def delivery(visit: Visit) -> Response:
    """One delivery with its body and its attempts."""
    found = await visit.api.get(f"{DELIVERIES}/{visit.segment(visit.of_path('delivery_id'))}")
    return visit.page("delivery.html", title=f"Delivery of {found['event']}", delivery=found)


async def replay(visit: Visit, _form: Fields) -> Response:
    """Send it once more."""
    id_ = visit.segment(visit.of_path("delivery_id"))
    await visit.api.call("POST", f"{DELIVERIES}/{id_}/replay")
    return visit.go(f"/webhooks/deliveries/{id_}", done="replayed")


async def _endpoint_page(
    visit: Visit, found: Json, *, secret: str | None = None, tested: Json | None = None, problem: Json | None = None
) -> Response:
    return visit.page(
        "endpoint.html",
        title="Endpoint",
        status=problem["status"] if problem else 200,
        endpoint=found,
        rotation=visit.document.fields("RotateSecret"),
        secret=secret,
        tested=tested,
        problem=problem,
    )


def _path(visit: Visit) -> str:
    return f"/v1/endpoints/{visit.segment(visit.of_path('endpoint_id'))}"
