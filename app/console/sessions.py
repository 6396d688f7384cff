"""Open and closed sessions: the live list, the list by filter with saved views and export, and one session explained."""

from collections.abc import Iterator
from typing import Any

from starlette.responses import RedirectResponse, Response

from app.console.api_calls import Json, PassedOn, together
from app.console.forms import as_query
from app.console.pages import with_query
from app.console.timeline import figure, supposed
from app.console.visit import PREFIX, Fields, Visit, in_form
from app.domain.instants import rfc3339, rfc3339_or_none
from app.domain.records import Session

LIST = "/v1/sessions"
VIEWS = "/v1/saved-views"
EXPORTS = {"csv": "csv", "ndjson": "ndjson"}
COLUMNS = ("user_id", "bot", "channel", "opened_at", "closed_at", "reason", "outcome", "active_ms")
"""The columns of the list unless the address names others."""

_SHOWN_LIVE = 200
_MESSAGES = 200
_NEIGHBOURS = 20
MOST_MINUTES = 1440
_WITHOUT = ("cursor", "limit")


async def live(visit: Visit) -> Response:
    """Open sessions, the next to close first."""
    page = await visit.api.get("/v1/live", [*visit.query, ("limit", str(_SHOWN_LIVE))])
    return visit.page("live.html", title="Live", page=page, given=dict(visit.query))


async def events(visit: Visit) -> Response:
    """The events of open sessions, as they happen."""
    return PassedOn(visit.api, "/v1/live/events", [(name, value) for name, value in visit.query if name == "bot"])


async def closed(visit: Visit) -> Response:
    """Closed sessions by the API's own filters: the page's address is the query."""
    fields = visit.document.query_fields(LIST, without=_WITHOUT)
    columns = [value for name, value in visit.query if name == "column"] or list(COLUMNS)
    given = [(name, value) for name, value in visit.query if name != "column"]
    known = [name for name in visit.document.properties("SessionView") if name != "id"]
    (reply, problem), saved = await together(
        in_form(visit.api.call("GET", LIST, query=as_query(fields, given))), visit.api.get(VIEWS)
    )
    here = with_query(visit.query, cursor=None)[1:]
    answer = {"sessions": [], "next": None} if reply is None else reply.body
    return visit.page(
        "sessions.html",
        title="Sessions",
        status=problem["status"] if problem else 200,
        fields=fields,
        given=_by_name(given),
        columns=[name for name in columns if name in known],
        known=known,
        sessions=answer["sessions"],
        next=answer["next"],
        problem=problem,
        exports=EXPORTS,
        views=saved["views"],
        here=here,
    )


async def save_view(visit: Visit, form: Fields) -> Response:
    """Save the list's present address under a name of the key's own."""
    query, name = form.get("query", ""), form.get("name", "").strip()
    await visit.api.call("PUT", f"{VIEWS}/{visit.segment(name)}", {"query": query})
    return RedirectResponse(f"{PREFIX}/sessions?{query}&done=view_saved", status_code=303)


async def delete_view(visit: Visit, form: Fields) -> Response:
    """Delete a saved view."""
    await visit.api.call("DELETE", f"{VIEWS}/{visit.segment(form.get('name', ''))}")
    return visit.go("/sessions", done="deleted")


async def export(visit: Visit) -> Response:
    """The sessions of a filter as a file, streamed."""
    fields = visit.document.query_fields(LIST, without=_WITHOUT)
    given = [(name, value) for name, value in visit.query if name not in {"column", "order", "format"}]
    kind = EXPORTS.get(visit.of_path("kind"), "csv")
    return PassedOn(visit.api, "/v1/exports/sessions", [*as_query(fields, given), ("format", kind), ("spreadsheet", "true")])


async def one(visit: Visit) -> Response:
    """One session: its transcript with the explanation beside each boundary, and all that belongs to it."""
    path = f"{LIST}/{visit.segment(visit.of_path('session_id'))}"
    after = dict(visit.query).get("cursor")
    session, explanation = await together(visit.api.get(path), visit.api.get(f"{path}/explanation"))
    page, neighbours, deliveries = await together(
        visit.api.get(f"{path}/messages", {"limit": _MESSAGES} | ({"cursor": after} if after else {})),
        _neighbours(visit, session),
        visit.api.allowed("/v1/deliveries", {"session_id": session["id"]}),
    )
    return visit.page(
        "session.html",
        title=f"Session of {session['user_id']}",
        session=session,
        explanation=explanation,
        messages=page["messages"],
        next=page["next"],
        figure=figure(session, page["messages"], explanation["data"]),
        neighbours=neighbours,
        deliveries=deliveries,
        supposed=await _supposed(visit, session, neighbours),
        may_close=session["status"] == "open" and visit.may("ingest", "admin"),
    )


async def close(visit: Visit, _fields: Fields) -> Response:
    """Close an open session."""
    session = visit.segment(visit.of_path("session_id"))
    await visit.api.call("POST", f"{LIST}/{session}/close")
    return visit.go(f"/sessions/{session}", done="closed")


async def _neighbours(visit: Visit, session: Json) -> list[Json]:
    """Sessions of the same strand of the conversation, the latest first."""
    query: dict[str, Any] = {"bot": session["bot"], "limit": _NEIGHBOURS}
    found = await visit.api.get(f"/v1/conversations/{visit.segment(session['conversation_id'])}/sessions", query)
    return [each for each in found["sessions"] if (each["channel"], each["thread"]) == (session["channel"], session["thread"])]


async def _supposed(visit: Visit, session: Json, neighbours: list[Json]) -> dict[str, Any] | None:
    """The conversation's sessions under another silence, by `decide`; None unless the address asks for it."""
    asked = dict(visit.query).get("minutes", "")
    bot = next((bot for bot in visit.bots if bot.id == session["bot"]), None)
    if bot is None or not asked.isdecimal() or not 1 <= int(asked) <= MOST_MINUTES:
        return None
    transcripts = await together(*(visit.api.get(f"{LIST}/{each['id']}/messages", {"limit": _MESSAGES}) for each in neighbours))
    pairs = [(each, page["messages"]) for each, page in zip(neighbours, transcripts, strict=True)]
    found = supposed(bot.id, bot.rules.policy.policy, pairs, minutes=int(asked))
    return {"minutes": int(asked), "now": len(neighbours), "sessions": list(_views(found))}


def _views(sessions: list[Session]) -> Iterator[dict[str, Any]]:
    for each in sessions:
        yield {
            "opened_at": rfc3339(each.opened_at_ms),
            "closed_at": rfc3339_or_none(each.closed_at_ms),
            "reason": each.reason,
            "outcome": each.outcome,
            "entries": each.entries,
        }


def _by_name(given: list[tuple[str, str]]) -> dict[str, Any]:
    """Value of each parameter as its input shows it: a list of those that were repeated."""
    values: dict[str, list[str]] = {}
    for name, text in given:
        values.setdefault(name, []).append(text)
    return {name: texts if name in {"reason", "outcome"} else " ".join(texts) for name, texts in values.items()}
