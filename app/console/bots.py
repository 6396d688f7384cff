"""Bots: their policy in a form with its effects beside it, the versions and their differences, and a sandbox to try one in."""

from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import Response

from app.console.api_calls import Json
from app.console.forms import value_of
from app.console.visit import Fields, Visit, in_form

ENTRY_FIELDS = ("user_id", "role", "type", "text", "intent", "channel", "sent_at")
"""The fields of an entry that the sandbox's form has."""

TRIED = "sandbox"
"""The bot that a new installation is tried out with."""

_SHOWN = 50


async def every(visit: Visit) -> Response:
    """All bots that the key covers, and a form for another one."""
    return await _every(visit)


async def _every(visit: Visit, given: Json | None = None, problem: Json | None = None) -> Response:
    page = await visit.api.get("/v1/bots", visit.query)
    fields = [visit.document.field("NewBot", name) for name in ("id", "name", "sandbox", "clock_mode")]
    status = problem["status"] if problem else 200
    return visit.page(
        "bots.html",
        title="Bots",
        status=status,
        bots=page["bots"],
        next=page["next"],
        fields=fields,
        given=given or {},
        problem=problem,
    )


async def create(visit: Visit, form: Fields) -> Response:
    """Make a bot with the default policy."""
    given = value_of(visit.document.fields("NewBot"), form.multi_items())
    _, problem = await in_form(visit.api.call("POST", "/v1/bots", given))
    if problem:
        return await _every(visit, given, problem)
    return visit.go(f"/bots/{given['id']}", done="created")


async def try_out(visit: Visit, _form: Fields) -> Response:
    """Make a sandbox bot, unless it is there, report a first entry to it, and go on to its clock."""
    await in_form(visit.api.call("POST", "/v1/bots", {"id": TRIED, "sandbox": True, "clock_mode": "manual"}))
    await visit.api.call("POST", f"/v1/bots/{TRIED}/messages", {"user_id": "ann", "role": "user", "text": "Where is my order?"})
    return visit.go(f"/bots/{TRIED}/sandbox", done="tried")


async def one(visit: Visit) -> Response:
    """A bot's policy in a form, with its effects."""
    saved = await visit.api.get(f"{_path(visit)}/policy")
    return await _policy_page(visit, saved, given=saved["policy"])


async def preview(visit: Visit, form: Fields) -> Response:
    """The same page with what the form says now, and its effects and differences; nothing is saved."""
    saved = await visit.api.get(f"{_path(visit)}/policy")
    return await _policy_page(visit, saved, given=_policy(visit, form))


async def save(visit: Visit, form: Fields) -> Response:
    """Save the form as the next version, unless another one was saved since it was loaded."""
    given = _policy(visit, form)
    headers = {"if-match": f'"{form.get("version", "")}"'}
    _, problem = await in_form(visit.api.call("PUT", f"{_path(visit)}/policy", given, headers=headers))
    if problem:
        saved = await visit.api.get(f"{_path(visit)}/policy")
        return await _policy_page(visit, saved, given=given, problem=problem)
    return visit.go(f"/bots/{visit.of_path('bot')}", done="saved")


async def versions(visit: Visit) -> Response:
    """All versions, and the differences between two of them."""
    page = await visit.api.get(f"{_path(visit)}/policy/versions", {"limit": 200})
    saved = {str(each["version"]): each for each in page["versions"]}
    wanted = dict(visit.query)
    latest = next(iter(saved))
    to = saved.get(wanted.get("to", latest), saved[latest])
    since = saved.get(wanted.get("from", str(to["version"] - 1)), to)
    changes = differences(await _resolved(visit, since["policy"]), await _resolved(visit, to["policy"]))
    return visit.page(
        "versions.html",
        title=f"Versions of the policy of {visit.of_path('bot')}",
        bot=visit.of_path("bot"),
        versions=page["versions"],
        since=since,
        to=to,
        changes=list(changes),
    )


async def restore(visit: Visit, form: Fields) -> Response:
    """Save an earlier version again, as the latest."""
    version, latest = visit.segment(form.get("restored", "")), form.get("version", "")
    headers = {"if-match": f'"{latest}"'}
    await visit.api.call("POST", f"{_path(visit)}/policy/versions/{version}/restore", headers=headers)
    return visit.go(f"/bots/{visit.of_path('bot')}", done="restored")


async def sandbox(visit: Visit) -> Response:
    """The clock of a sandbox bot, a form for entries, and the sessions that they make."""
    return await _sandbox(visit)


async def report(visit: Visit, form: Fields) -> Response:
    """Report an entry."""
    return await _tried(visit, form, "entry", f"{_path(visit)}/messages")


async def advance(visit: Visit, form: Fields) -> Response:
    """Move the clock."""
    return await _tried(visit, form, "clock", f"{_path(visit)}/clock/advance")


async def _tried(visit: Visit, form: Fields, kind: str, path: str) -> Response:
    """Post what one of the sandbox's two forms says, and show the answer."""
    given = value_of(_sandbox_fields(visit)[kind], form.multi_items())
    reply, problem = await in_form(visit.api.call("POST", path, given))
    if reply is None:
        return await _sandbox(visit, given={kind: given}, problem=problem)
    return await _sandbox(visit, given={kind: {**given, "text": ""}}, answer=reply.body)


async def _sandbox(
    visit: Visit, given: Mapping[str, Json] | None = None, problem: Json | None = None, answer: Json | None = None
) -> Response:
    bot = visit.of_path("bot")
    clock = await visit.api.get(f"{_path(visit)}/clock")
    open_now = await visit.api.allowed(f"{_path(visit)}/live", {"limit": _SHOWN})
    closed = await visit.api.allowed("/v1/sessions", {"bot": bot, "order": "-closed_at", "limit": _SHOWN})
    return visit.page(
        "sandbox.html",
        title=f"Sandbox of {bot}",
        status=problem["status"] if problem else 200,
        bot=bot,
        clock=clock,
        fields=_sandbox_fields(visit),
        given={"entry": {"user_id": "ann", "role": "user", "type": "message"}, "clock": {"seconds": 900}} | dict(given or {}),
        problem=problem,
        answer=answer,
        sessions=[*((open_now or {}).get("sessions", [])), *((closed or {}).get("sessions", []))],
    )


def _sandbox_fields(visit: Visit) -> dict[str, Any]:
    entry = [visit.document.field("Entry", name) for name in ENTRY_FIELDS]
    return {"entry": entry, "clock": [visit.document.field("ClockAdvance", "seconds")]}


async def _policy_page(visit: Visit, saved: Json, *, given: Json, problem: Json | None = None) -> Response:
    effects, fault = await in_form(visit.api.call("POST", "/v1/policies/validate", given))
    problem = problem or fault
    changes = list(differences(saved["resolved"], effects.body["policy"])) if effects else []
    bot = visit.of_path("bot")
    return visit.page(
        "policy.html",
        title=f"Policy of {bot}",
        status=problem["status"] if problem else 200,
        bot=bot,
        is_sandbox=any(each.id == bot and each.sandbox for each in visit.bots),
        saved=saved,
        given=given,
        fields=_policy_fields(visit),
        effects=effects.body if effects else None,
        changes=changes,
        problem=problem,
    )


def _policy_fields(visit: Visit) -> list[Any]:
    return [visit.document.field("PolicyToSave", "preset"), *visit.document.fields("Policy")]


def _policy(visit: Visit, form: Fields) -> Json:
    return value_of(_policy_fields(visit), form.multi_items())


async def _resolved(visit: Visit, policy: Json) -> Json:
    reply = await visit.api.call("POST", "/v1/policies/validate", policy)
    resolved: Json = reply.body["policy"]
    return resolved


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - any JSON
    """Path, value before and value after, of each value that differs; None for one that is not there."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from differences(before.get(name), after.get(name), f"{path}.{name}" if path else name)
    elif before != after:
        yield path, before, after


def _path(visit: Visit) -> str:
    return f"/v1/bots/{visit.segment(visit.of_path('bot'))}"
