"""For operators: keys, the audit log, rejected records, and the state of the system."""

import re
from collections.abc import Iterator

from starlette.responses import Response

from app.console.api_calls import Json
from app.console.forms import as_query, value_of
from app.console.home import unaccounted_of
from app.console.visit import Fields, Visit, in_form

SCOPES = ("ingest", "read", "admin")
_METRIC = re.compile(r"^(?P<name>adjourn_\w+)(?P<labels>\{[^}]*\})? (?P<value>\S+)$", re.MULTILINE)
_HELP = re.compile(r"^# HELP (\S+) (.*)$", re.MULTILINE)
_PARTS_OF_OTHERS = ("_bucket", "_created")


async def keys(visit: Visit) -> Response:
    """All keys that the key may see, and a form for another one."""
    return await _keys(visit)


async def _keys(visit: Visit, given: Json | None = None, problem: Json | None = None, made: Json | None = None) -> Response:
    page = await visit.api.get("/v1/keys", visit.query)
    fields = visit.document.fields("NewKey")
    return visit.page(
        "keys.html",
        title="Keys",
        status=problem["status"] if problem else 200,
        keys=page["keys"],
        next=page["next"],
        fields=fields,
        given=given or {},
        problem=problem,
        made=made,
    )


async def create_key(visit: Visit, form: Fields) -> Response:
    """Make a key, and show it this once."""
    fields = visit.document.fields("NewKey")
    given = value_of(fields, as_query(fields, form.multi_items()))
    reply, problem = await in_form(visit.api.call("POST", "/v1/keys", given))
    return await _keys(visit, given if reply is None else None, problem, made=None if reply is None else reply.body)


async def revoke_key(visit: Visit, _form: Fields) -> Response:
    """Revoke a key: it is refused everywhere within two seconds."""
    await visit.api.call("DELETE", f"/v1/keys/{visit.segment(visit.of_path('key_id'))}")
    return visit.go("/keys", done="revoked")


async def audit(visit: Visit) -> Response:
    """Changes of the configuration, the latest first."""
    fields = visit.document.query_fields("/v1/audit", without=("cursor", "limit"))
    page = await visit.api.get("/v1/audit", as_query(fields, visit.query))
    return visit.page(
        "audit.html", title="Audit", entries=page["entries"], next=page["next"], fields=fields, given=dict(visit.query)
    )


async def rejects(visit: Visit) -> Response:
    """Records that could not be archived."""
    page = await visit.api.get("/v1/rejects", visit.query)
    return visit.page("rejects.html", title="Rejects", rejects=page["rejects"], next=page["next"])


async def reject(visit: Visit) -> Response:
    """One of them with all that Redis held."""
    found = await visit.api.get(f"/v1/rejects/{visit.segment(visit.of_path('reject_id'))}")
    return visit.page("reject.html", title=f"Reject {found['id']}", reject=found)


async def replay_reject(visit: Visit, _form: Fields) -> Response:
    """Have it archived again."""
    await visit.api.call("POST", f"/v1/rejects/{visit.segment(visit.of_path('reject_id'))}/replay")
    return visit.go("/rejects", done="replayed")


async def replay_rejects(visit: Visit, _form: Fields) -> Response:
    """Have all of them archived again."""
    await visit.api.call("POST", "/v1/rejects/replay")
    return visit.go("/rejects", done="replayed")


async def system(visit: Visit) -> Response:
    """Readiness with each check, and the metrics of this machine's processes."""
    ready = await visit.api.get("/readyz")
    text = await visit.api.text("/metrics")
    about = dict(_HELP.findall(text))
    return visit.page(
        "system.html",
        title="System",
        ready=ready,
        unaccounted=await unaccounted_of(visit),
        metrics=[(*each, about.get(each[0].removesuffix("_total"), about.get(each[0], ""))) for each in _metrics(text)],
        version=visit.request.app.state.version,
    )


def _metrics(text: str) -> Iterator[tuple[str, str, str]]:
    for found in _METRIC.finditer(text):
        if not found["name"].endswith(_PARTS_OF_OTHERS):
            yield found["name"], (found["labels"] or "").strip("{}"), f"{float(found['value']):.10g}"
