"""Every request is answered in one shape, and no request of a caller is answered with 500."""

import gzip
import json
import re
import string
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text

from app.api.errors import error_of
from app.api.middleware import ADMIN_BODY_BYTES
from app.archive.engine import make_engine
from app.config.publish import move
from app.config.records import BotRecord, KeyConfig, Mark
from app.errors import Unavailable
from app.ids import key_digest
from app.main import create_app
from app.resources import Resources
from app.settings import Settings
from tests.api.conftest import Client, ClientMaker

NASTY = (
    "\x00",
    "a\x00b",
    "\ud800",
    "é" * 900,
    "'; DROP TABLE bots; --",
    "%",
    "../..",
    "\u202e",
    "-1",
    "9" * 400,
    "1e400",
    "NaN",
    "null",
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "{018f0000-0000-7000-8000-000000000000}",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "2026-11-21",
    "AAAAAAAAAAAAAAAA",
)
DEEP: Any = [[]]
for _ in range(60):
    DEEP = [DEEP]

RAW = (
    b"",
    b"{",
    b"\xff\xfe",
    b'{"id": "\\ud800"}',
    b'{"id": "a\\u0000"}',
    b'{"name": "\\udfff", "scopes": ["read"]}',
    b'{"\\ud800": 1}',
    b'{"policy": {"\\ud800": "\\ud800"}}',
    b'{"preset": "\\ud800"}',
    b'{"closure_message": {"texts": {"default": "a\\u0000b"}}}',
    b'{"inactivity_minutes": ' + b"9" * 5000 + b"}",
    b'{"inactivity_minutes": NaN}',
    b'{"value": 1e999}',
    b'{"value": ' + b"9" * 40 + b"}",
    b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"[" * 100_000,
    b"null",
    b"0",
    b'"text"',
    b"[]",
)
"""Bodies that no JSON library of this side would write."""


def operations(app: FastAPI) -> Iterator[tuple[str, str, list[str]]]:
    """Method, path and the names of query parameters, of every route but those for operators."""
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1"):
                yield method.upper(), path, [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"]


def filled(path: str, value: str) -> str:
    """The path with this value in each place of a name."""
    return re.sub(r"{\w+}", lambda _: value, path)


async def check(client: Client, method: str, path: str, **more: Any) -> None:  # noqa: ANN401 - httpx's own
    reply = await client.request(method, path, **more)
    assert reply.status_code < 500, f"{method} {path} {str(more)[:200]}: {reply.status_code} {reply.text}"
    if reply.is_client_error:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == reply.status_code
        assert all(fault["what"] and fault["hint"] for fault in reply.json().get("errors", ())), f"{method} {path}: {reply.text}"


def quoted(value: str) -> str:
    return httpx.QueryParams({"v": value.encode("utf-8", "surrogatepass").decode("latin-1")}).__str__()[2:].replace("+", "%20")


async def test_no_name_in_a_path_breaks_a_route(admin: Client, app: FastAPI) -> None:
    """Every route with every nasty name in every place of its path."""
    for method, path, _ in operations(app):
        for value in NASTY if "{" in path else ():
            await check(admin, method, filled(path, quoted(value)))


@pytest.mark.parametrize("of_values", (pytest.param(4, id="short"), pytest.param(1, id="every value", marks=pytest.mark.slow)))
async def test_no_query_parameter_breaks_a_route(admin: Client, app: FastAPI, of_values: int) -> None:
    """Every parameter of every route, and one that no route has, with every nasty value; or each with one in four, in turn."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    asked = ((path, name) for method, path, names in operations(app) if method == "GET" for name in (*names, "no_such_parameter"))
    for number, (path, name) in enumerate(asked):
        for value in NASTY[number % of_values :: of_values]:
            await check(admin, "GET", f"{filled(path, 'shop')}?{name}={quoted(value)}")


async def test_no_body_breaks_a_route(admin: Client, app: FastAPI) -> None:
    """Every route that reads one with bodies that are cut short, too deep, too large, or hold what no text may."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for method, path, _ in operations(app):
        for body in RAW if method in {"POST", "PUT", "PATCH"} else ():
            for kind in ("application/json", "text/plain", "application/x-ndjson"):
                await check(admin, method, filled(path, "shop"), content=body, headers={"content-type": kind})


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
FIELDS = """id name sandbox clock_mode policy url events enabled scopes bots preset channels inactivity_minutes closing reminder
    closure_message texts default minutes value ttl_s seconds to since role user_id text type tags sent_at""".split()  # noqa: SIM905 - as a list it would be a page
names = st.sampled_from(FIELDS) | st.text(alphabet=string.printable, max_size=5)
bodies = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5), max_leaves=12
)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_json_breaks_a_route(admin: Client, app: FastAPI, data: st.DataObject) -> None:
    """Any JSON, with the names that bodies have, to any route that reads one."""
    method, path, _ = data.draw(
        st.sampled_from([operation for operation in operations(app) if operation[0] in {"POST", "PUT", "PATCH"}])
    )
    bot = data.draw(st.sampled_from(["shop", "none"]))
    await check(admin, method, filled(path, bot), json=data.draw(bodies))


async def test_an_unknown_route_is_a_problem_too(admin: Client) -> None:
    """An unknown route, a method that a route does not have, a body that is none."""
    unknown = await admin.refused("GET", "/v1/nothing")
    assert (unknown["status"], unknown["code"], unknown["type"]) == (404, "not_found", "urn:adjourn:problem:not_found")
    wrong = await admin.put("/v1/presets")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "GET"
    broken = await admin.request("POST", "/v1/bots", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["code"]) == (422, "invalid")


async def test_the_page_of_the_document_loads_nothing_from_elsewhere(admin: Client) -> None:
    """It works in a closed network, and its browser, which may hold a key, contacts no other server."""
    page = await admin.get("/docs")
    loaded = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page.text)
    addresses = [src or url for src, url in loaded]

    assert page.status_code == 200
    assert "https://" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
    assert '"validatorUrl": null' in page.text
    assert len(addresses) == 4
    for address in addresses:
        assert (await admin.get(f"/{address}")).status_code == 200, address
    assert (await admin.get("/redoc")).status_code == 404
    assert (await admin.refused("GET", "/docs/assets/none.js"))["code"] == "not_found"


def test_the_document_shows_every_refusal_as_a_problem(app: FastAPI) -> None:
    """No other shape for an answer of 400 and beyond, and nothing that refers to what the document does not hold."""
    document = app.openapi()
    answers = [
        (path, status, response)
        for path, methods in document["paths"].items()
        for operation in methods.values()
        for status, response in operation["responses"].items()
    ]
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))

    refusals = [
        (path, response) for path, status, response in answers if status >= "400" and (path, status) != ("/readyz", "503")
    ]
    assert all(list(response["content"]) == ["application/problem+json"] for _, response in refusals)
    assert referred <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in referred


def test_the_document_says_that_an_entry_of_a_batch_may_be_refused(app: FastAPI) -> None:
    """A generated client must not break on `error` where a receipt would stand."""
    items = app.openapi()["components"]["schemas"]["BatchAnswer"]["properties"]["answers"]["items"]

    assert [choice["$ref"].rpartition("/")[2] for choice in items["anyOf"]] == ["Receipt", "EntryError"]


def test_the_document_names_every_operation_once(app: FastAPI) -> None:
    """A client generator names its methods by them."""
    names = [operation["operationId"] for methods in app.openapi()["paths"].values() for operation in methods.values()]

    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)


async def test_a_refusal_names_every_field_and_echoes_nothing(admin: Client) -> None:
    """Each fault with where it is; a value that was sent may be a secret."""
    reply = await admin.post(
        "/v1/keys", json={"name": "", "scopes": ["read", "own"], "bots": ["ok", "NOT OK"], "my-secret": "x-9"}
    )
    problem = reply.json()

    assert {fault["where"] for fault in problem["errors"]} == {"name", "scopes[1]", "bots[1]", "my-secret"}
    assert "x-9" not in reply.text
    assert "NOT OK" not in reply.text


async def test_a_body_with_several_faults_is_refused_with_all_of_them(admin: Client) -> None:
    """The faults of a policy inside it are among them."""
    policy = {"inactivity_minutes": 4, "closing": "never", "channels": {"sms": {"colour": "red"}}}
    problem = await admin.refused(
        "POST", "/v1/bots", {"id": "NO", "name": "", "sandbox": False, "clock_mode": "manual", "policy": policy, "more": 1}
    )
    policy_faults = {"policy.inactivity_minutes", "policy.closing", "policy.channels.sms.colour"}

    assert {fault["where"] for fault in problem["errors"]} == {"id", "name", "clock_mode", "more"} | policy_faults


@pytest.mark.parametrize(
    ("method", "path", "body", "faulty"),
    (
        ("POST", "/v1/bots/shop/clock/advance", {"more": 1}, {"to", "more"}),
        ("POST", "/v1/bots/shop/clock/advance", {"seconds": 1, "to": "2026-11-21T10:00:00Z", "more": 1}, {"to", "more"}),
        ("POST", "/v1/bots/shop/clock/advance", {"seconds": -1, "more": 1}, {"seconds", "more"}),
        ("POST", "/v1/deliveries/replay", {"since": "today"}, {"since", "endpoint_id"}),
        ("POST", "/v1/deliveries/replay", {"since": "today", "bot": "NO"}, {"since", "bot"}),
        ("PATCH", "/v1/keys/01a00000-0000-7000-8000-000000000001", {"name": None, "more": 1}, {"name", "more"}),
    ),
)
async def test_fields_that_contradict_one_another_are_among_the_faults(
    admin: Client, *, method: str, path: str, body: dict[str, Any], faulty: set[str]
) -> None:
    """They are reported together with the faults of single fields, not in a second round."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "sandbox": True})
    problem = await admin.refused(method, path, body)

    assert problem["status"] == 422
    assert {fault["where"] for fault in problem["errors"]} == faulty


async def test_a_parameter_that_a_route_does_not_have_is_refused(admin: Client, app: FastAPI) -> None:
    """By every route that has a key's scope: a misspelt filter must not answer with everything."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for method, path, names in operations(app):
        problem = await admin.refused(method, filled(path, "shop") + "?limt=1", {})
        (fault,) = problem["errors"]

        assert (problem["status"], fault["where"], fault["what"]) == (422, "limt", "there is no such parameter"), path
        assert all(name in fault["hint"] for name in names)


async def test_parameters_are_looked_at_once_it_is_known_who_asks(clients: ClientMaker) -> None:
    """Without the scope it is 403, also if the parameters are wrong."""
    reader = await clients("read")

    assert (await reader.refused("GET", "/v1/bots?limt=1"))["status"] == 403
    assert (await reader.refused("GET", "/v1/sessions?limt=1"))["status"] == 422


async def test_every_answer_carries_a_request_id(admin: Client) -> None:
    """The caller's own if it is fit for a log, else one of ours; on success, refusal and ingest."""
    for path in ("/v1/bots", "/v1/nothing", "/healthz"):
        given_id = await admin.get(path, headers={"x-request-id": "abc-1"})
        assert given_id.headers["x-request-id"] == "abc-1"
        unfit = await admin.get(path, headers={"x-request-id": "a b\tc"})
        assert len(unfit.headers["x-request-id"]) == 32


async def test_an_unforeseen_error_is_500_without_its_trace(app: FastAPI, admin: Client) -> None:
    """The words of the error stay in the log; the answer carries the id to find it by."""

    @app.get("/v1/broken")
    async def broken() -> None:
        raise ZeroDivisionError("private words")

    reply = await admin.get("/v1/broken")

    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["request_id"] == reply.headers["x-request-id"]
    assert "private words" not in reply.text


async def test_a_body_over_the_limit_is_refused(admin: Client) -> None:
    """Configuration is small: 64 KB, whatever the limit of entries."""
    body = {"id": "shop", "policy": {"closure_message": {"texts": {"default": "x" * ADMIN_BODY_BYTES}}}}
    assert (await admin.refused("POST", "/v1/bots", body))["status"] == 413


async def test_a_refusal_quotes_little_of_the_request(admin: Client) -> None:
    """20 faults at most, and 200 characters of a path or a name."""
    many = {f"field{number}": 1 for number in range(100)} | {"x" * 900: 1}
    faults = (await admin.refused("POST", "/v1/bots", many))["errors"]
    lost = await admin.refused("GET", "/v1/" + "y" * 900)

    assert len(faults) == 20
    assert len(lost["instance"]) == 200


async def test_without_postgres_queries_say_when_to_come_back_and_ingest_goes_on(redis_url: str) -> None:
    """503 with `Retry-After` for what only Postgres knows; entries, open sessions and their close as ever."""
    away = Settings(redis_url=redis_url, database_url="postgresql://127.0.0.1:1/none", shards=4)
    app = create_app(away)
    async with app.router.lifespan_context(app):
        resources: Resources = app.state.resources
        client = await known_client(app, resources)
        answer = await client.ok("POST", "/v1/bots/shop/messages", {"user_id": "u", "role": "user", "text": "hi"})
        session = await client.ok("GET", f"/v1/sessions/{answer['session_id']}")
        assert session["status"] == "open"
        assert len((await client.ok("GET", "/v1/bots/shop/live"))["sessions"]) == 1
        assert (await client.ok("POST", f"/v1/sessions/{answer['session_id']}/close"))["status"] == "closed"

        for path in ("/v1/sessions", "/v1/bots", "/v1/bots/shop/policy", "/v1/audit", "/v1/keys"):
            reply = await client.get(path)
            assert reply.status_code == 503, path
            assert int(reply.headers["retry-after"]) > 0
            assert reply.json()["code"] == "unavailable"
        await client.aclose()


async def known_client(app: FastAPI, resources: Resources) -> Client:
    """A client whose key Redis alone knows of."""
    bot = BotRecord(
        "shop",
        "Shop",
        sandbox=False,
        clock_mode=None,
        deleted=False,
        policy_version=1,
        effective_at_ms=0,
        policy={},
        endpoints=(),
    )
    key = KeyConfig("k", "k", frozenset({"admin", "read", "ingest"}), None)
    mark = Mark("here", 1)
    await move(resources.redis, stored=None, to=mark, bots=[bot], api_keys={key_digest("adj_x"): key}, whole=True)
    assert await resources.config.caught_up(mark, timeout_s=5)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return Client(transport=transport, base_url="http://test", headers={"authorization": "Bearer adj_x"})


async def test_a_query_that_takes_too_long_is_cut(database_url: str) -> None:
    """By Postgres itself, and answered with 503."""
    # Long enough for what the driver asks while it connects, on a machine under load; far too short for the query.
    engine = make_engine(database_url, statement_timeout_s=2)
    async with engine.connect() as conn:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the driver's own kind
            await conn.execute(text("SELECT pg_sleep(60)"))
    await engine.dispose()
    shown = error_of(caught.value)

    assert isinstance(shown, Unavailable)
    assert shown.detail == "this took too long"


@pytest.mark.parametrize("number", (0, 1_763_719_200, "0.5", "1763719200000", "2026-11-21"))
async def test_an_instant_is_no_number(admin: Client, number: object) -> None:
    """By its size a number would be seconds or milliseconds, so that one of them is 50 years off."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})

    for problem in (
        await admin.refused("GET", "/v1/sessions", params={"opened_from": number}),
        await admin.refused("POST", "/v1/deliveries/replay", {"bot": "shop", "since": number}),
        await admin.refused("POST", "/v1/keys", {"name": "k", "scopes": ["read"], "expires_at": number}),
    ):
        assert [fault["hint"] for fault in problem["errors"]] == ["RFC 3339 with an offset, such as 2026-11-21T10:00:00Z"]


async def test_a_whole_number_may_be_written_with_a_point(admin: Client) -> None:
    """`60.0` is a whole number in JSON; 60.5 is none."""
    body = {"id": "shop", "retention_days": {"sessions": 60.0}, "policy": {"inactivity_minutes": 20.0}}
    bot = await admin.ok("POST", "/v1/bots", body)
    policy = await admin.ok("GET", "/v1/bots/shop/policy")
    await admin.refused("PATCH", "/v1/bots/shop", {"retention_days": {"sessions": 60.5}})

    assert bot["retention_days"]["sessions"] == 60
    assert policy["resolved"]["inactivity_minutes"] == 20


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    (
        ("OPTIONS", "/v1/bots/shop", "DELETE, GET, PATCH"),
        ("PUT", "/v1/bots", "GET, POST"),
        ("GET", "/v1/deliveries/replay", "POST"),
        ("GET", "/v1/rejects/replay", "POST"),
        ("DELETE", "/v1/bots/shop/users/ann/sessions", "GET"),
        ("DELETE", "/v1/bots/shop/users/ann%2Fsessions", None),
    ),
)
async def test_a_path_means_one_resource(admin: Client, method: str, path: str, allowed: str | None) -> None:
    """The one that names most of it; `Allow` lists all of its methods. A user whose id ends so is written with `%2F`."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    reply = await admin.request(method, path)

    assert (reply.status_code, reply.headers.get("allow")) == ((405, allowed) if allowed else (202, None))


async def test_a_compressed_body_is_refused_everywhere(admin: Client) -> None:
    """Nothing unpacks one; a body that says it is compressed and is not would be read otherwise by a proxy that looks into it."""
    packed = await admin.post("/v1/bots", content=gzip.compress(b'{"id":"shop"}'), headers={"content-encoding": "gzip"})
    plain = await admin.post("/v1/bots", json={"id": "shop"}, headers={"content-encoding": "gzip"})

    assert [(one.status_code, one.json()["code"]) for one in (packed, plain)] == [(415, "unsupported_media")] * 2


@pytest.mark.parametrize("name", ("sessions", "close", "export", "variables"))
async def test_a_variable_may_be_named_as_a_route(admin: Client, name: str) -> None:
    """Its value is answered, and never the sessions of a user `ann/variables`."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    path = f"/v1/bots/shop/users/ann/variables/{name}"
    await admin.ok("PUT", path, {"value": 1})

    assert (await admin.ok("GET", path))["value"] == 1
