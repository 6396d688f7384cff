"""Each limit is held and counted as docs/operations.md says, and an admin may give a bot or a key one of its own."""

import re
from collections.abc import Awaitable, Callable

import httpx
import pytest
from prometheus_client import REGISTRY

from app.api.routes.bots import BotLimitOverrides
from app.api.routes.keys import KeyLimitOverrides
from app.config.records import BotLimits
from app.settings import Settings
from tests.api.conftest import Client, ClientMaker, Json
from tests.tooling.tree import DOCS

ENTRY = {"user_id": "ann", "role": "user", "text": "hi"}
ENDPOINT = {"url": "http://127.0.0.1:9999/"}
ROWS = re.findall(
    r"^\| `([A-Z_]+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \| `(adjourn_\w+)\{(\w+)=\"(\w+)\"\}` \|$",
    (DOCS / "operations.md").read_text(),
    re.MULTILINE,
)
"""Of each limit in the guide: its setting, whose own it may be, the refusal, and the metric with its label and value."""
LIMITS = [name for name in Settings.model_fields if re.match(r"rate_|session_max_|max_(bots|keys|endpoints|open_)", name)]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_bots": 2, "max_keys": 6, "max_endpoints": 1})


async def entries(client: Client) -> httpx.Response:
    """Beyond ten entries, ten seconds' worth of one a second."""
    await client.post("/v1/bots/shop/messages/batch", json=[ENTRY] * 11)
    return await client.post("/v1/bots/shop/messages", json=ENTRY)


async def large_entries(client: Client) -> httpx.Response:
    """Two of which are beyond 10 bytes a second."""
    return await client.post("/v1/bots/shop/messages/batch", json=[ENTRY | {"text": "x" * 200}] * 2)


async def requests(client: Client) -> httpx.Response:
    """Beyond the ten of one a second."""
    replies = [await client.get("/v1/sessions") for _ in range(12)]
    return next((reply for reply in replies if reply.status_code != 200), replies[0])


async def sessions(client: Client) -> httpx.Response:
    await client.post("/v1/bots/shop/messages", json=ENTRY)
    return await client.post("/v1/bots/shop/messages", json=ENTRY | {"user_id": "ben"})


async def endpoints(client: Client) -> httpx.Response:
    await client.post("/v1/bots/shop/endpoints", json=ENDPOINT)
    return await client.post("/v1/bots/shop/endpoints", json=ENDPOINT)


async def bots(client: Client) -> httpx.Response:
    await client.post("/v1/bots", json={"id": "bank"})
    return await client.post("/v1/bots", json={"id": "third"})


async def keys(client: Client) -> httpx.Response:
    replies = [await client.post("/v1/keys", json={"name": "k", "scopes": ["read"]}) for _ in range(6)]
    return replies[-1]


async def long_session(client: Client) -> httpx.Response:
    """Two entries of one conversation."""
    return await client.post("/v1/bots/shop/messages/batch", json=[ENTRY] * 2)


Exceeding = Callable[[Client], Awaitable[httpx.Response]]
EXCEEDING: dict[str, Exceeding] = {
    "rate_entries": entries,
    "rate_bytes": large_entries,
    "rate_requests": requests,
    "max_open_sessions": sessions,
    "max_endpoints": endpoints,
    "max_bots": bots,
    "max_keys": keys,
    "session_max_entries": long_session,
    "session_max_bytes": long_session,
}
LOW = {"rate_bytes": 10}  # a second; of all others the limit that is tried is 1
CASES = [(setting.lower(), owner, *rest) for setting, owners, *rest in ROWS for owner in owners.replace("`", "").split(", ")]


def test_every_limit_has_its_row_and_its_case() -> None:
    """A setting that is added has a row in docs/operations.md, a case here, and a field where the row says that it can be set."""
    own = {(name, "bot") for name in BotLimitOverrides.model_fields} | {(name, "key") for name in KeyLimitOverrides.model_fields}

    assert sorted(setting.lower() for setting, *_ in ROWS) == sorted(LIMITS) == sorted(EXCEEDING)
    assert {(name, owner) for name, owner, *_ in CASES if owner in {"bot", "key"}} == own
    assert set(BotLimitOverrides.model_fields) == set(BotLimits.__struct_fields__)


@pytest.mark.parametrize(("name", "owner", "refusal", "metric", "label", "value"), CASES)
async def test_what_exceeds_a_limit_is_refused_and_counted(
    admin: Client, *, name: str, owner: str, refusal: str, metric: str, label: str, value: str
) -> None:
    """By a bot's own limit, a key's, or the settings', with the status, the type of problem and the metric that the guide has."""
    limits = {name: LOW.get(name, 1)}
    await admin.ok("POST", "/v1/bots", {"id": "shop"} | ({"limits": limits} if owner == "bot" else {}))
    if owner == "key":
        (key,) = (await admin.ok("GET", "/v1/keys"))["keys"]
        await admin.ok("PATCH", f"/v1/keys/{key['id']}", {"limits": limits})
    before = REGISTRY.get_sample_value(metric, {label: value}) or 0

    reply = await EXCEEDING[name](admin)

    assert (REGISTRY.get_sample_value(metric, {label: value}) or 0) > before
    if refusal == "none":
        assert [answer["closed"] and answer["closed"][0]["reason"] for answer in reply.json()["answers"]] == [[], "max_size"]
        return
    status, code = refusal.replace("`", "").split()
    assert (reply.status_code, reply.json()["type"]) == (int(status), f"urn:adjourn:problem:{code}")
    assert ("retry-after" in reply.headers) == (status == "429")
    if name.startswith("rate_"):
        kind, burst = name.removeprefix("rate_"), limits[name] * 10
        assert f'"{kind}";q={burst};w=10' in reply.headers["ratelimit-policy"]
        assert f'"{kind}";r=' in reply.headers["ratelimit"]


async def test_a_limit_of_its_own_may_be_larger_and_goes_with_null(admin: Client) -> None:
    """It stands in place of the setting until it is null again; what is left out of a change is the setting's."""
    made = await admin.ok("POST", "/v1/bots", {"id": "shop", "limits": {"max_endpoints": 2, "rate_entries": 7}})
    replies = [await admin.post("/v1/bots/shop/endpoints", json=ENDPOINT) for _ in range(3)]
    renamed = await admin.ok("PATCH", "/v1/bots/shop", {"name": "Shop"})
    changed = await admin.ok("PATCH", "/v1/bots/shop", {"limits": {"max_endpoints": None}})
    (entry, *_) = (await admin.ok("GET", "/v1/audit"))["entries"]

    nothing = dict.fromkeys(BotLimitOverrides.model_fields)
    assert made["limits"] == renamed["limits"] == nothing | {"max_endpoints": 2, "rate_entries": 7}
    assert [reply.status_code for reply in replies] == [201, 201, 409]
    assert changed["limits"] == nothing
    assert (entry["detail"]["before"], entry["detail"]["after"]) == ({"limits": made["limits"]}, {"limits": nothing})
    for wrong in (-1, "1", 1.5, 10**13):
        assert (await admin.refused("PATCH", "/v1/bots/shop", {"limits": {"rate_entries": wrong}}))["status"] == 422
    assert (await admin.refused("PATCH", "/v1/bots/shop", {"limits": {"rate_requests": 1}}))["status"] == 422


async def test_a_changed_limit_holds_at_once(admin: Client) -> None:
    """Also for the requests of a client that was let in before."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    before = await admin.post("/v1/bots/shop/messages", json=ENTRY)
    await admin.ok("PATCH", "/v1/bots/shop", {"limits": {"rate_entries": 3, "session_max_entries": 1}})
    after = await admin.post("/v1/bots/shop/messages", json=ENTRY)

    assert '"entries";q=50000;w=10' in before.headers["ratelimit-policy"]
    assert '"entries";q=30;w=10' in after.headers["ratelimit-policy"]
    assert [ended["reason"] for ended in after.json()["closed"]] == ["max_size"]


async def test_only_a_key_for_all_bots_sets_limits(admin: Client, clients: ClientMaker) -> None:
    """An admin of one bot sets none, of the bot, of a key or of its own; one that is given its own limits passes them on."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "limits": {"rate_entries": 5}})
    limited = await clients("admin", bots=["shop"])
    own = (await limited.ok("GET", "/v1/keys"))["keys"][0]
    refused = [
        await limited.patch("/v1/bots/shop", json={"limits": {}}),
        await limited.patch(f"/v1/keys/{own['id']}", json={"limits": None}),
        await limited.post("/v1/keys", json={"name": "k", "scopes": ["ingest"], "bots": ["shop"], "limits": {"rate_entries": 0}}),
    ]
    renamed = await limited.ok("PATCH", "/v1/bots/shop", {"name": "Shop"})

    assert [reply.status_code for reply in refused] == [403] * 3
    assert renamed["limits"]["rate_entries"] == 5


async def test_a_key_passes_its_limits_on(admin: Client) -> None:
    """To a key that it creates, and to the one that replaces it: else its limits would end with its first request."""
    nothing = dict.fromkeys(KeyLimitOverrides.model_fields)
    made = await admin.ok("POST", "/v1/keys", {"name": "k", "scopes": ["admin"], "limits": {"rate_requests": 9}})
    as_made = {"headers": {"authorization": f"Bearer {made['key']}"}}
    child: Json = await admin.ok("POST", "/v1/keys", {"name": "c", "scopes": ["read"]}, **as_made)
    rotated = await admin.ok("POST", f"/v1/keys/{made['id']}/rotate")
    free = await admin.ok("POST", "/v1/keys", {"name": "f", "scopes": ["read"], "limits": {}}, **as_made)
    await admin.ok("PATCH", f"/v1/keys/{child['id']}", {"limits": None})
    (entry, *_) = (await admin.ok("GET", "/v1/audit"))["entries"]

    assert [each["limits"] for each in (made, child, rotated)] == [nothing | {"rate_requests": 9}] * 3
    assert free["limits"] == nothing
    assert entry["detail"] == {"before": {"limits": {"rate_requests": 9}}, "after": {"limits": {}}}
