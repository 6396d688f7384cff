"""No key sees, changes or learns of another tenant's things: every route, with a key of another bot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from msgspec import msgpack
from sqlalchemy import event, text

from app.archive import rejects
from app.closing.rejects import RejectedRecord
from app.live import keys
from app.live.codec import EventRecord, encode
from app.main import create_app
from app.resources import Resources
from app.settings import Settings
from app.worker import Worker
from tests.api.conftest import Client, ClientMaker

MARK = "bank"
"""Part of everything of the other tenant, and of nothing of the asking key's."""


@dataclass(frozen=True)
class Theirs:
    """Things of the other tenant, by the names that routes give them."""

    names: dict[str, str]
    open_session: str


def reads() -> Iterator[tuple[str, set[str], set[str]]]:
    """Each route that only reads: its path, and the names of its parameters in the path and in the query."""
    app = create_app(Settings(redis_url="redis://nowhere", database_url="postgresql://nowhere/db"))
    for path, methods in app.openapi()["paths"].items():
        for method in ("get",) if "get" in methods else ():
            parameters = methods[method].get("parameters", ())
            names = {kind: {each["name"] for each in parameters if each["in"] == kind} for kind in ("path", "query")}
            yield path, names["path"], names["query"]


# Method and path to a body that the route accepts; a read that names a thing in its path is among them by itself.
FOREIGN: dict[tuple[str, str], Any] = {
    **{("GET", path): None for path, in_path, in_query in reads() if in_path and "bot" not in in_query},
    ("PATCH", "/v1/bots/{bot}"): {"name": "mine now"},
    ("DELETE", "/v1/bots/{bot}"): None,
    ("PUT", "/v1/bots/{bot}/policy"): {"inactivity_minutes": 30},
    ("PATCH", "/v1/bots/{bot}/policy"): {"inactivity_minutes": 30},
    ("POST", "/v1/bots/{bot}/policy/versions/{version}/restore"): None,
    ("POST", "/v1/bots/{bot}/endpoints"): {"url": "http://127.0.0.1:9999/"},
    ("PATCH", "/v1/endpoints/{endpoint_id}"): {"url": "http://127.0.0.1:9998/"},
    ("DELETE", "/v1/endpoints/{endpoint_id}"): None,
    ("POST", "/v1/endpoints/{endpoint_id}/test"): None,
    ("POST", "/v1/endpoints/{endpoint_id}/rotate-secret"): {},
    ("PATCH", "/v1/keys/{key_id}"): {"note": "mine now"},
    ("POST", "/v1/keys/{key_id}/rotate"): None,
    ("DELETE", "/v1/keys/{key_id}"): None,
    ("DELETE", "/v1/saved-views/{name}"): None,
    ("POST", "/v1/sessions/{session_id}/close"): None,
    ("PUT", "/v1/bots/{bot}/conversations/{conversation_id}/variables/{name}"): {"value": 1},
    ("DELETE", "/v1/bots/{bot}/conversations/{conversation_id}/variables/{name}"): None,
    ("POST", "/v1/bots/{bot}/conversations/{conversation_id}/close"): None,
    ("DELETE", "/v1/bots/{bot}/users/{user_id}"): None,
    ("POST", "/v1/bots/{bot}/users/{user_id}/close"): None,
    ("PUT", "/v1/bots/{bot}/users/{user_id}/variables/{name}"): {"value": 1},
    ("DELETE", "/v1/bots/{bot}/users/{user_id}/variables/{name}"): None,
    ("POST", "/v1/bots/{bot}/clock/advance"): {"seconds": 10_000},
    ("POST", "/v1/deliveries/{delivery_id}/replay"): None,
    ("POST", "/v1/rejects/{reject_id}/replay"): None,
    ("POST", "/v1/bots/{bot}/messages"): {"user_id": "u", "role": "user", "text": "hi"},
    ("POST", "/v1/bots/{bot}/messages/batch"): [{"user_id": "u", "role": "user", "text": "hi"}],
}
"""Routes that name one thing of the other tenant: as good as not there."""

NAMING: dict[tuple[str, str], dict[str, Any]] = {
    **{("GET", path): {"params": {"bot": MARK}} for path, _, in_query in reads() if "bot" in in_query},
    ("POST", "/v1/deliveries/replay"): {"json": {"bot": MARK, "since": "2020-01-01T00:00:00Z"}},
}
"""Routes that may name the other tenant's bot: it is not found."""

LISTS = {
    "/v1/bots",
    "/v1/keys",
    "/v1/audit",
    "/v1/saved-views",
    "/v1/sessions",
    "/v1/sessions?conversation_id=web:bank-user",
    "/v1/sessions?user_id=bank-user",
    "/v1/conversations/web:bank-user/sessions",
    "/v1/exports/sessions",
    "/v1/exports/messages",
    "/v1/analytics/sessions?group_by=bot&from=2020-01-01T00:00:00Z",
    "/v1/deliveries",
    "/v1/endpoints",
    "/v1/rejects",
}
"""Lists: nothing of the other tenant is in them."""

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/v1/presets"),
    ("GET", "/v1/analytics/definitions"),
    ("POST", "/v1/policies/validate"),
    ("POST", "/v1/bots"),
    ("POST", "/v1/keys"),
    ("PUT", "/v1/saved-views/{name}"),
    ("POST", "/v1/rejects/replay"),
}
"""Routes about no tenant's things, or that make new ones (`test_admin` holds those to the key's own bots)."""


@pytest.fixture
async def theirs(admin: Client, worker: Worker, resources: Resources) -> Theirs:
    """A tenant with one of everything: archived and open session, delivery, endpoint, key, variable, a rejected record."""
    await admin.ok("POST", "/v1/bots", {"id": MARK, "sandbox": True})
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    endpoint = await admin.ok("POST", f"/v1/bots/{MARK}/endpoints", {"url": "http://127.0.0.1:9999/bank"})
    key = await admin.ok("POST", "/v1/keys", {"name": MARK, "scopes": ["read"], "bots": [MARK]})
    entry = {"user_id": "bank-user", "role": "user", "text": "bank secret"}
    closed = await admin.ok("POST", f"/v1/bots/{MARK}/messages", entry)
    await admin.ok("POST", f"/v1/sessions/{closed['session_id']}/close")
    await worker.archivist.run_once()
    opened = await admin.ok("POST", f"/v1/bots/{MARK}/messages", entry)
    await admin.ok("PUT", f"/v1/bots/{MARK}/conversations/web:bank-user/variables/bank-variable", {"value": "bank"})
    await admin.ok("PUT", f"/v1/bots/{MARK}/users/bank-user/variables/bank-variable", {"value": "bank"})
    await admin.ok("PUT", "/v1/saved-views/bank-variable", {"query": "bot=bank"})
    (delivery,) = (await admin.ok("GET", "/v1/deliveries"))["deliveries"]
    async with resources.engine.begin() as conn:
        await rejects.add(conn, bot=MARK, session_id=closed["session_id"], error="refused", payload=b"\xc1")
    (reject,) = (await admin.ok("GET", "/v1/rejects"))["rejects"]
    erasure = await admin.ok("DELETE", f"/v1/bots/{MARK}/users/bank-other")
    names = {
        "bot": MARK,
        "erasure_id": erasure["id"],
        "endpoint_id": endpoint["id"],
        "key_id": key["id"],
        "session_id": closed["session_id"],
        "conversation_id": "web:bank-user",
        "user_id": "bank-user",
        "version": "1",
        "message_id": closed["message_id"],
        "delivery_id": delivery["id"],
        "reject_id": str(reject["id"]),
        "name": "bank-variable",
    }
    return Theirs(names, opened["session_id"])


def test_the_tables_name_every_route(app: FastAPI) -> None:
    """A route that is added without a row here fails the build."""
    every = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    listed = {("GET", path.partition("?")[0].replace("web:bank-user", "{conversation_id}")) for path in LISTS}

    assert FOREIGN.keys() | NAMING.keys() | listed | OPEN == every


async def test_another_tenants_things_are_not_found(clients: ClientMaker, theirs: Theirs) -> None:
    """404 on every route, in the same words as for a thing that does not exist, and for open sessions as for archived ones."""
    stranger = await clients("admin", "read", "ingest", bots=["shop"])
    nothing = {
        name: "none" if name in {"bot", "conversation_id", "user_id", "message_id", "name"} else str(uuid4())
        for name in theirs.names
    }
    for (method, path), body in FOREIGN.items():
        for names in (theirs.names, theirs.names | {"session_id": theirs.open_session}):
            foreign = await stranger.refused(method, path.format_map(names), body)
            absent = await stranger.refused(method, path.format_map(nothing), body)

            assert foreign["status"] == absent["status"] == 404, f"{method} {path}"
            assert _unnamed(foreign, names) == _unnamed(absent, nothing), f"{method} {path}"


async def test_another_tenants_things_cost_the_same_reads_as_absent_ones(
    clients: ClientMaker, theirs: Theirs, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of an answer reveals no more than its words: same statements in Postgres, same commands in Redis."""
    stranger = await clients("admin", "read", "ingest", bots=["shop"])
    reads: list[str] = []
    call, call_all = resources.pipe.call, resources.pipe.call_all

    async def count_call(*command: Any, **more: Any) -> Any:  # noqa: ANN401 - the pipe's own
        reads.extend(_looked_up([command]))
        return await call(*command, **more)

    async def count_calls(commands: Any, **more: Any) -> Any:  # noqa: ANN401 - the pipe's own
        reads.extend(_looked_up(commands))
        return await call_all(commands, **more)

    monkeypatch.setattr(resources.pipe, "call", count_call)
    monkeypatch.setattr(resources.pipe, "call_all", count_calls)
    for engine in (resources.engine, resources.admin_engine):
        event.listen(engine.sync_engine, "before_cursor_execute", lambda _, __, sql, *___: reads.append(sql))

    async def reads_of(method: str, path: str, body: object) -> list[str]:
        await stranger.refused(method, path, body)
        found, reads[:] = reads[:], []
        return found

    # Variables and clocks of a bot are behind the bot's check, which reads nothing; these are found by an id of their own.
    by_id = {route: body for route, body in FOREIGN.items() if "{bot}" not in route[1]}
    for (method, path), body in by_id.items():
        absent = await reads_of(
            method, path.format_map({name: str(uuid4()) for name in theirs.names} | {"reject_id": "999"}), body
        )
        for names in (theirs.names, theirs.names | {"session_id": theirs.open_session}):
            assert await reads_of(method, path.format_map(names), body) == absent, f"{method} {path}"
        assert absent, f"{method} {path}"


def _looked_up(commands: Sequence[tuple[Any, ...]]) -> list[str]:
    """The names of commands, but for one that takes a slice of the asking key's rate: that comes at any request."""
    return [str(command[0]) for command in commands if keys.rate("") not in str(command)]


async def test_another_tenants_bot_in_a_filter_is_not_found(clients: ClientMaker, theirs: Theirs) -> None:
    """A filter or a body that names it: 404, as for a bot that does not exist."""
    stranger = await clients("admin", "read", "ingest", bots=["shop"])
    for (method, path), asked in NAMING.items():
        problem = await stranger.refused(method, path.format_map(theirs.names), **asked)
        assert problem["status"] == 404, f"{method} {path}"


async def test_lists_hold_nothing_of_another_tenant(admin: Client, clients: ClientMaker, theirs: Theirs) -> None:
    """An admin of all bots finds the things there, a key of another bot does not."""
    stranger = await clients("admin", "read", "ingest", bots=["shop"])
    for path in LISTS:
        assert MARK in (await admin.get(path)).text, path
        reply = await stranger.get(path)
        assert reply.status_code == 200, path
        assert MARK not in reply.text.replace("web:bank-user", ""), path
    assert theirs.names["session_id"] not in (await stranger.get("/v1/conversations/web:bank-user/sessions")).text


async def test_refused_requests_change_nothing(admin: Client, clients: ClientMaker, theirs: Theirs, resources: Resources) -> None:
    """No route changed anything before it refused."""

    async def everything() -> list[str]:
        # A clock runs, and an export is in the audit log.
        read = [path for method, path in FOREIGN if method == "GET" and not path.endswith(("/clock", "/export"))]
        paths = [path.format_map(theirs.names) for path in read]
        return [(await admin.get(path)).text for path in [*paths, "/v1/audit", f"/v1/sessions/{theirs.open_session}"]]

    stranger = await clients("admin", "read", "ingest", bots=["shop"])
    before = await everything()
    clock = await resources.sandboxes.stored_ms(MARK)
    for (method, path), body in FOREIGN.items():
        for names in (theirs.names, theirs.names | {"session_id": theirs.open_session}):
            await stranger.refused(method, path.format_map(names), body)

    assert await everything() == before
    assert await resources.sandboxes.stored_ms(MARK) == clock


@pytest.mark.parametrize("scope", ("read", "ingest", "admin"))
async def test_each_route_wants_its_scope(clients: ClientMaker, theirs: Theirs, scope: str) -> None:
    """With one scope alone a key gets 403 wherever that scope is not the one, before anything is looked up."""
    client = await clients(scope, bots=[MARK])
    nothing = {
        name: "none" if name in {"bot", "conversation_id", "user_id", "message_id", "name"} else str(uuid4())
        for name in theirs.names
    }
    for (method, path), body in FOREIGN.items():
        reply = await client.request(method, path.format_map(nothing), json=body)
        assert reply.status_code == (404 if scope in _scopes(method, path) else 403), f"{scope}: {method} {path}"


REPORTS = {
    ("POST", "/v1/policies/validate"),
    ("POST", "/v1/bots/{bot}/messages"),
    ("POST", "/v1/bots/{bot}/messages/batch"),
    ("PUT", "/v1/saved-views/{name}"),
    ("DELETE", "/v1/saved-views/{name}"),
    *((method, path) for method, path in FOREIGN if path.endswith("/variables/{name}")),
}
"""Routes that change nothing, or write what a bot reports or what a key keeps for itself: no acts of an admin."""


async def test_every_act_of_an_admin_is_in_the_audit_log(admin: Client, theirs: Theirs, resources: Resources) -> None:
    """Each route with a changing method leaves an entry; one that is added without fails the build."""
    bodies: dict[tuple[str, str], Any] = {route: body for route, body in FOREIGN.items() if route[0] != "GET"}
    bodies |= {route: more["json"] for route, more in NAMING.items() if "json" in more}
    bodies |= {("POST", "/v1/bots"): {"id": "more"}, ("POST", "/v1/keys"): {"name": "more", "scopes": ["read"]}}
    bodies |= {("POST", "/v1/rejects/replay"): None}
    assert bodies.keys() | REPORTS >= {route for route in OPEN if route[0] != "GET"}
    acts = sorted(bodies.keys() - REPORTS, key=lambda each: (each[0] == "DELETE", -len(each[1])))
    for method, path in acts:
        names = dict(theirs.names)
        if path.endswith("/close"):
            entry = {"user_id": "bank-user", "role": "user", "text": "hi"}
            names["session_id"] = (await admin.ok("POST", f"/v1/bots/{MARK}/messages", entry))["session_id"]
        elif "/rejects/" in path:
            names["reject_id"] = await _readable_reject(resources)
        elif "/deliveries/" in path:
            async with resources.engine.begin() as conn:
                await conn.execute(text("UPDATE deliveries SET status = 'failed', failed_at = now()"))
        before = (await admin.ok("GET", "/v1/audit?limit=1"))["entries"]
        await admin.ok(method, path.format_map(names), bodies[method, path], headers={"if-match": "*"})
        (after,) = (await admin.ok("GET", "/v1/audit?limit=1"))["entries"]

        assert [after] != before, f"{method} {path}"
        assert (after["actor"], after["key_id"] is None) == (before[0]["actor"], False), f"{method} {path}"


async def _readable_reject(resources: Resources) -> str:
    """The id of a reject that can be replayed."""
    record = RejectedRecord(0, encode(EventRecord(MARK, "web:bank-user", "", (), ())), {})
    async with resources.engine.begin() as conn:
        await rejects.add(conn, bot=MARK, session_id=None, error="refused", payload=msgpack.encode(record))
        return str((await rejects.ids(conn, bots=frozenset({MARK})))[-1])


def _scopes(method: str, path: str) -> set[str]:
    if path.endswith("/close"):
        return {"ingest", "admin"}
    if "/messages" in path and method == "POST":
        return {"ingest"}
    if (method, path) == ("DELETE", "/v1/bots/{bot}/users/{user_id}") or path.endswith("/export"):
        return {"admin"}
    if "/clock" in path or ("/variables/" in path and method != "GET"):
        return {"ingest"}
    if any(
        part in path for part in ("/v1/sessions", "/saved-views", "/live", "/summary", "/conversations/", "/users/", "/messages/")
    ):
        return {"read"}
    return {"admin"}


def _unnamed(problem: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A problem without the names in the request, and without the parts that differ between any two requests."""
    detail = problem["detail"]
    for name in sorted(names.values(), key=len, reverse=True):
        detail = detail.replace(name, "…")
    return problem | {"detail": detail, "instance": "", "request_id": ""}


@pytest.mark.usefixtures("admin")
async def test_no_route_reads_a_body_before_the_key(app: FastAPI) -> None:
    """Without a key, or with a wrong one, every route of the document answers 401 and leaves the body unread."""
    keyed = [(method, path) for path, operations in app.openapi()["paths"].items() for method in operations if "/v1/" in path]
    for method, path in keyed:
        for headers in ([], [(b"authorization", b"Bearer adj_wrong")]):
            assert await _answered_unread(app, method, path, headers=headers) == 401, (method, path)

    assert len(keyed) > 40


async def _answered_unread(app: FastAPI, method: str, path: str, *, headers: list[tuple[bytes, bytes]]) -> int:
    """The status; fails if the app reads of the body."""
    sent: list[Any] = []

    async def receive() -> Any:  # noqa: ANN401 - a message of ASGI
        pytest.fail(f"{method} {path} reads the body")

    async def send(message: Any) -> None:  # noqa: ANN401 - a message of ASGI
        sent.append(message)

    scope = {"type": "http", "method": method.upper(), "path": path, "query_string": b"", "headers": headers, "root_path": ""}
    await app(scope, receive, send)
    return int(sent[0]["status"])
