"""Bots, policies, endpoints, keys: saved values are read back, changes are audited, and the rules of each hold."""

import asyncio
import re
from datetime import datetime

import msgspec
import pytest
from sqlalchemy import text

from app.archive import endpoints, rejects
from app.closing.rejects import RejectedRecord
from app.domain.policy.parse import PRESETS
from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client, ClientMaker, Json


async def test_a_bot_lives_from_its_creation_to_its_deletion(admin: Client, resources: Resources) -> None:
    """Created, listed, read, renamed, deleted; then it is not found, takes no entries, and its id is not given away again."""
    created = await admin.request("POST", "/v1/bots", json={"id": "shop", "name": "Shop", "policy": {"preset": "kore"}})
    assert created.status_code == 201
    assert created.headers["location"] == "/v1/bots/shop"
    assert await admin.ok("GET", "/v1/bots/shop") == created.json()
    assert [bot["id"] for bot in (await admin.ok("GET", "/v1/bots"))["bots"]] == ["shop"]
    assert resources.config.bot("shop") is not None

    renamed = await admin.ok("PATCH", "/v1/bots/shop", {"name": "Shop 2"})
    assert (renamed["name"], renamed["sandbox"], renamed["clock_mode"]) == ("Shop 2", False, None)

    await admin.ok("DELETE", "/v1/bots/shop")
    assert (await admin.refused("GET", "/v1/bots/shop"))["status"] == 404
    assert (await admin.refused("DELETE", "/v1/bots/shop"))["status"] == 404
    assert (await admin.refused("GET", "/v1/bots/shop/policy"))["status"] == 404
    assert (await admin.refused("POST", "/v1/bots", {"id": "shop"}))["status"] == 409
    assert (await admin.refused("POST", "/v1/bots/shop/messages", {"user_id": "u", "role": "user"}))["status"] == 404


async def test_a_sandbox_bot_has_a_clock_and_other_bots_have_none(admin: Client) -> None:
    """`clock_mode` goes with `sandbox`; it can be changed, and a bot cannot become a sandbox later."""
    made = await admin.ok("POST", "/v1/bots", {"id": "box", "sandbox": True})
    assert (made["sandbox"], made["clock_mode"]) == (True, "manual")
    assert (await admin.ok("PATCH", "/v1/bots/box", {"clock_mode": "sent_at"}))["clock_mode"] == "sent_at"

    await admin.ok("POST", "/v1/bots", {"id": "real"})
    for path, method, body in (
        ("/v1/bots", "POST", {"id": "other", "clock_mode": "manual"}),
        ("/v1/bots/real", "PATCH", {"clock_mode": "manual"}),
        ("/v1/bots/real", "PATCH", {"sandbox": True}),
    ):
        assert (await admin.refused(method, path, body))["status"] == 422


@pytest.mark.parametrize(("minutes", "status"), ((4, 422), (5, 200), (60, 200), (61, 422)))
async def test_the_silence_is_five_to_sixty_minutes(admin: Client, minutes: int, status: int) -> None:
    """4 and 61 are refused by the field's name and its range, 5 and 60 are accepted (K08)."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    reply = await admin.request("PUT", "/v1/bots/shop/policy", json={"inactivity_minutes": minutes})

    assert reply.status_code == status
    if status == 422:
        (fault,) = reply.json()["errors"]
        assert fault["where"] == "inactivity_minutes"
        assert "5 to 60" in fault["hint"]
    else:
        assert reply.json()["resolved"]["inactivity_minutes"] == minutes


async def test_every_version_of_a_policy_is_kept_with_its_key_and_instant(admin: Client) -> None:
    """The list begins with the latest; a version is shown as it was saved, beside the values that it resolves to."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": {"preset": "aivo"}})
    await admin.ok("PUT", "/v1/bots/shop/policy", {"preset": "kore", "inactivity_minutes": 20})
    saved = await admin.ok("GET", "/v1/bots/shop/policy")
    versions = await admin.ok("GET", "/v1/bots/shop/policy/versions")

    assert (saved["version"], saved["policy"]) == (2, {"preset": "kore", "inactivity_minutes": 20})
    assert (saved["resolved"]["inactivity_clock"], saved["notices"]) == ("user", [])
    assert [(each["version"], each["policy"]) for each in versions["versions"]] == [
        (2, {"preset": "kore", "inactivity_minutes": 20}),
        (1, {"preset": "aivo"}),
    ]
    (key,) = (await admin.ok("GET", "/v1/keys"))["keys"]
    assert all(each["changed_by"] == key["id"] and each["changed_at"].endswith("Z") for each in versions["versions"])


async def test_a_stale_if_match_is_refused_and_changes_nothing(admin: Client) -> None:
    """412 for an older version, 428 for none beyond the first; `*` and weak tags match."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    path = "/v1/bots/shop/policy"
    first = (await admin.get(path)).headers["etag"]
    assert (await admin.put(path, json={"inactivity_minutes": 20}, headers={"if-match": first})).headers["etag"] == '"2"'

    stale = await admin.refused("PUT", path, {"inactivity_minutes": 30}, headers={"if-match": first})
    assert (stale["status"], stale["code"]) == (412, "stale_version")
    blind = await admin.refused("PUT", path, {"inactivity_minutes": 30})
    assert (blind["status"], blind["code"]) == (428, "precondition_required")
    assert (await admin.ok("GET", path))["policy"] == {"inactivity_minutes": 20}

    for tag, version in ((' "1", W/"2"', 3), ("*", 4)):
        saved = await admin.ok("PUT", path, {"inactivity_minutes": 40}, headers={"if-match": tag})
        assert saved["version"] == version


async def test_a_policy_is_changed_by_a_merge_patch(admin: Client) -> None:
    """Values are set and, by null, removed, on channels too; the rest stays; `If-Match` counts as for a replacement."""
    policy = {"preset": "kore", "inactivity_minutes": 20, "channels": {"sms": {"inactivity_minutes": 60, "closing": "proactive"}}}
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": policy})
    patch = {"inactivity_minutes": None, "on_escalated": "end", "channels": {"sms": {"closing": None}}}
    changed = await admin.ok("PATCH", "/v1/bots/shop/policy", patch)
    kind = {"content-type": "application/merge-patch+json", "if-match": '"2"'}
    again = await admin.request("PATCH", "/v1/bots/shop/policy", content=b'{"preset": "aivo"}', headers=kind)

    assert changed["policy"] == {"preset": "kore", "on_escalated": "end", "channels": {"sms": {"inactivity_minutes": 60}}}
    assert (changed["version"], changed["resolved"]["inactivity_minutes"]) == (2, 15)
    assert (again.status_code, again.json()["version"], again.headers["etag"]) == (200, 3, '"3"')
    assert (await admin.refused("PATCH", "/v1/bots/shop/policy", {}))["status"] == 428
    stale = {"if-match": '"1"'}
    assert (await admin.refused("PATCH", "/v1/bots/shop/policy", {}, headers=stale))["status"] == 412
    wrong = await admin.refused("PATCH", "/v1/bots/shop/policy", {"inactivity_minutes": 4}, headers={"if-match": "*"})
    assert [fault["where"] for fault in wrong["errors"]] == ["inactivity_minutes"]


async def test_an_earlier_version_of_a_policy_is_restored(admin: Client) -> None:
    """As the next version; one that does not exist is 404."""
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": {"preset": "aivo"}})
    await admin.ok("PUT", "/v1/bots/shop/policy", {"inactivity_minutes": 20})
    path = "/v1/bots/shop/policy/versions"
    restored = await admin.ok("POST", f"{path}/1/restore", headers={"if-match": '"2"'})

    assert (restored["version"], restored["policy"]) == (3, {"preset": "aivo"})
    assert [each["version"] for each in (await admin.ok("GET", path))["versions"]] == [3, 2, 1]
    for version in ("9", "x", "-1"):
        assert (await admin.refused("POST", f"{path}/{version}/restore", headers={"if-match": "*"}))["status"] == 404


async def test_admins_that_save_at_once_overwrite_no_change(admin: Client) -> None:
    """Ten on the same version: one succeeds, nine get 412."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    saves = (
        admin.put("/v1/bots/shop/policy", json={"inactivity_minutes": 10 + at}, headers={"if-match": '"1"'}) for at in range(10)
    )
    statuses = sorted([reply.status_code for reply in await asyncio.gather(*saves)])

    assert statuses == [200] + [412] * 9
    assert (await admin.ok("GET", "/v1/bots/shop/policy"))["version"] == 2


async def test_a_saved_policy_is_known_when_the_answer_comes(admin: Client, resources: Resources) -> None:
    """No wait between saving and posting: the process that saved it goes by it at once."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for minutes in (20, 30, 40):
        tag = (await admin.get("/v1/bots/shop/policy")).headers["etag"]
        await admin.ok("PUT", "/v1/bots/shop/policy", {"inactivity_minutes": minutes}, headers={"if-match": tag})
        bot = resources.config.bot("shop")
        assert bot is not None
        assert bot.rules.policy.policy.inactivity_minutes == minutes


async def test_lazy_closing_is_answered_with_a_notice(admin: Client) -> None:
    """K25, when it is saved, read and validated."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    saved = await admin.ok("PUT", "/v1/bots/shop/policy", {"preset": "kore-legacy"})
    read = await admin.ok("GET", "/v1/bots/shop/policy")
    shown = await admin.ok("POST", "/v1/policies/validate", {"preset": "kore-legacy"})

    for answer in (saved, read, shown):
        assert "deprecated" in answer["notices"][0]


async def test_a_policy_is_explained_before_it_is_saved(admin: Client) -> None:
    """In words and as a timeline; every problem of a wrong one is named at once."""
    shown = await admin.ok("POST", "/v1/policies/validate", {"inactivity_minutes": 20})
    wrong = await admin.refused("POST", "/v1/policies/validate", {"inactivity_minutes": 4, "closing": "never", "colour": "red"})

    assert any("20 minutes" in sentence for sentence in shown["words"])
    assert shown["timeline"][-1]["after_minutes"] == 20
    assert {fault["where"] for fault in wrong["errors"]} == {"inactivity_minutes", "closing", "colour"}


async def test_presets_are_told_with_what_they_come_to(admin: Client) -> None:
    """All eight, each with its own values and every field that follows."""
    shown = (await admin.ok("GET", "/v1/presets"))["presets"]

    assert {preset["name"]: preset["values"] for preset in shown} == PRESETS
    assert all(preset["resolved"]["max_duration_hours"] == 168 for preset in shown)


async def test_an_endpoint_lives_from_its_creation_to_its_deletion(admin: Client, resources: Resources) -> None:
    """Its secret is shown once; events have a default; a change of URL, events and enabling is known at once."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    made = await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/hook"})
    assert made["secret"].startswith("whsec_")
    assert made["events"] == ["session.reminder", "session.closure_message", "session.closed"]
    path = f"/v1/endpoints/{made['id']}"
    shown = {name: value for name, value in made.items() if name != "secret"}
    assert await admin.ok("GET", path) == shown
    assert (await admin.ok("GET", "/v1/bots/shop/endpoints"))["endpoints"] == [shown]

    changed = await admin.ok("PATCH", path, {"events": ["session.closed", "session.opened"], "url": "http://127.0.0.1:9999/b"})
    assert (changed["events"], changed["url"]) == (["session.opened", "session.closed"], "http://127.0.0.1:9999/b")
    bot = resources.config.bot("shop")
    assert bot is not None
    assert bot.subscribed == {"session.closed", "session.opened"}

    assert (await admin.ok("PATCH", path, {"enabled": False}))["enabled"] is False
    bot = resources.config.bot("shop")
    assert bot is not None
    assert bot.endpoints == ()

    await admin.ok("DELETE", path)
    assert (await admin.refused("GET", path))["status"] == 404
    assert (await admin.ok("GET", "/v1/bots/shop/endpoints"))["endpoints"] == []


async def test_endpoints_are_listed_over_all_bots(admin: Client, clients: ClientMaker) -> None:
    """The oldest first, page by page, without deleted ones; of one bot by its id, and of the key's own bots."""
    made: list[Json] = []
    for bot in ("shop", "bank", "shop", "bank"):
        if not made or len(made) == 1:
            await admin.ok("POST", "/v1/bots", {"id": bot})
        made.append(await admin.ok("POST", f"/v1/bots/{bot}/endpoints", {"url": f"http://127.0.0.1:9999/{len(made)}"}))
    await admin.ok("DELETE", f"/v1/endpoints/{made[1]['id']}")
    ids = [each["id"] for each in made]

    first = await admin.ok("GET", "/v1/endpoints?limit=2")
    rest = await admin.ok("GET", f"/v1/endpoints?limit=2&cursor={first['next']}")
    assert [each["id"] for each in (*first["endpoints"], *rest["endpoints"])] == [ids[0], ids[2], ids[3]]
    assert rest["next"] is None
    assert [each["id"] for each in (await admin.ok("GET", "/v1/endpoints?bot=bank"))["endpoints"]] == [ids[3]]
    banker = await clients("admin", bots=["bank"])
    assert [each["bot"] for each in (await banker.ok("GET", "/v1/endpoints"))["endpoints"]] == ["bank"]


@pytest.mark.parametrize("url", ("", "nonsense", "ftp://example.org", "http://user:pw@example.org", "http://a b", "http://\x00"))
async def test_an_address_that_is_none_is_refused(admin: Client, url: str) -> None:
    """By the field's name, when it is made and when it is changed."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    made = await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/hook"})
    for method, path in (("POST", "/v1/bots/shop/endpoints"), ("PATCH", f"/v1/endpoints/{made['id']}")):
        problem = await admin.refused(method, path, {"url": url})
        assert problem["status"] == 422
        assert problem["errors"][0]["where"] == "url"


async def test_a_limited_admin_names_no_private_address(admin: Client, clients: ClientMaker, resources: Resources) -> None:
    """Receivers' replies are shown, so a tenant could read what is inside; nor does a name that is private later help."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    limited = await clients("admin", bots=["shop"])
    inside = {"url": "http://127.0.0.1:9999/hook"}

    (fault,) = (await limited.refused("POST", "/v1/bots/shop/endpoints", inside))["errors"]
    assert (fault["where"], fault["what"]) == ("url", "names 127.0.0.1, a private address")
    assert "a key for all bots" in fault["hint"]
    made = await limited.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://receiver.invalid:9999/hook"})
    path = f"/v1/endpoints/{made['id']}"
    assert (await limited.refused("PATCH", path, inside))["errors"][0]["where"] == "url"
    assert not await _private_allowed(resources, made["id"])

    await admin.ok("PATCH", path, inside)
    await limited.ok("PATCH", path, {"events": ["session.closed"]})
    assert await _private_allowed(resources, made["id"])
    await limited.ok("PATCH", path, {"url": "http://receiver.invalid:9999/hook"})
    assert not await _private_allowed(resources, made["id"])


async def _private_allowed(resources: Resources, endpoint: str) -> bool:
    async with resources.engine.connect() as conn:
        row = await endpoints.find(conn, endpoint)
    assert row is not None
    return bool(row.private_allowed)


async def test_a_key_is_shown_once_works_at_once_and_ends_when_revoked(admin: Client) -> None:
    """Its secret is in no list; it is refused from the moment that its revocation is answered."""
    made = await admin.ok("POST", "/v1/keys", {"name": "reader", "scopes": ["read", "read"]})
    assert made["key"].startswith("adj_")
    assert (made["scopes"], made["bots"], made["prefix"]) == (["read"], None, made["key"][:10])
    bearer = {"authorization": f"Bearer {made['key']}"}
    await admin.ok("GET", "/v1/sessions", headers=bearer)
    listed = (await admin.get("/v1/keys")).text
    assert made["key"] not in listed
    assert "digest" not in listed

    await admin.ok("DELETE", f"/v1/keys/{made['id']}")
    await admin.ok("DELETE", f"/v1/keys/{made['id']}")
    refused = await admin.refused("GET", "/v1/sessions", headers=bearer)
    assert refused["status"] == 401
    shown = {key["id"]: key["revoked_at"] for key in (await admin.ok("GET", "/v1/keys"))["keys"]}
    assert shown[made["id"]] is not None


async def test_without_a_key_nothing_is_told(admin: Client) -> None:
    """No header, another scheme, an unknown key: 401 with the scheme to use, on every route that is not for operators."""
    for header in ("", "Basic YTpi", "Bearer", "Bearer adj_unknown", "Bearer \x80"):
        reply = await admin.get("/v1/bots", headers={b"authorization": header.encode("latin-1")})
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == 'Bearer realm="adjourn"'


async def test_every_change_is_audited(admin: Client) -> None:
    """An entry has the key, the act, the thing and the change, and no secret; the latest comes first; by bot if asked so."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots", {"id": "other"})
    await admin.ok("PATCH", "/v1/bots/shop", {"name": "Shop"})
    await admin.ok("PUT", "/v1/bots/shop/policy", {"inactivity_minutes": 20})
    endpoint = await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/"})
    await admin.ok("PATCH", f"/v1/endpoints/{endpoint['id']}", {"enabled": False})
    await admin.ok("DELETE", f"/v1/endpoints/{endpoint['id']}")
    key = await admin.ok("POST", "/v1/keys", {"name": "k", "scopes": ["read"], "bots": ["shop"]})
    await admin.ok("DELETE", f"/v1/keys/{key['id']}")
    await admin.ok("DELETE", "/v1/bots/shop")
    entries = (await admin.ok("GET", "/v1/audit", params={"bot": "shop"}))["entries"]
    reply = await admin.get("/v1/audit")

    assert [(entry["action"], entry["target"]) for entry in reversed(entries)] == [
        ("bot.created", "shop"),
        ("bot.changed", "shop"),
        ("policy.changed", "shop"),
        ("endpoint.created", endpoint["id"]),
        ("endpoint.changed", endpoint["id"]),
        ("endpoint.deleted", endpoint["id"]),
        ("key.created", key["id"]),
        ("key.revoked", key["id"]),
        ("bot.deleted", "shop"),
    ]
    created, changed, policy, _, disabled, deleted, _, revoked, _ = [entry["detail"] for entry in reversed(entries)]
    assert created["after"]["name"] == "shop"
    assert changed == {"before": {"name": "shop"}, "after": {"name": "Shop"}}
    assert policy == {"version": 2, "before": {}, "after": {"inactivity_minutes": 20}}
    assert disabled == {"before": {"enabled": True}, "after": {"enabled": False}}
    assert deleted["before"]["url"] == "http://127.0.0.1:9999/"
    assert revoked["before"]["scopes"] == ["read"]
    assert all(entry["key_id"] and entry["actor"] and entry["at"].endswith("Z") for entry in entries)
    assert key["key"] not in reply.text
    assert endpoint["secret"] not in reply.text
    assert len(reply.json()["entries"]) == 10


async def test_a_bot_has_a_retention(admin: Client) -> None:
    """Of sessions, messages and deliveries apart; null keeps; too short a one is refused; all three are replaced at once."""
    made = await admin.ok("POST", "/v1/bots", {"id": "shop", "retention_days": {"sessions": 365}})
    renamed = await admin.ok("PATCH", "/v1/bots/shop", {"name": "Shop"})
    changed = await admin.ok("PATCH", "/v1/bots/shop", {"retention_days": {"messages": 30}})
    (entry, *_) = (await admin.ok("GET", "/v1/audit"))["entries"]

    assert made["retention_days"] == renamed["retention_days"] == {"sessions": 365, "messages": None, "deliveries": None}
    assert changed["retention_days"] == {"sessions": None, "messages": 30, "deliveries": None}
    assert entry["detail"]["after"] == {"retention_days": changed["retention_days"]}
    for days in (1, 0, 36_501, "30", 2.5):
        assert (await admin.refused("PATCH", "/v1/bots/shop", {"retention_days": {"messages": days}}))["status"] == 422


async def test_the_audit_log_is_filtered(admin: Client, clients: ClientMaker) -> None:
    """By the key that made a change, by bot, action, thing and time; two filters are both met."""
    other = await clients("admin")
    for client, bot in ((admin, "shop"), (other, "bank")):
        await client.ok("POST", "/v1/bots", {"id": bot})
        await client.ok("PUT", f"/v1/bots/{bot}/policy", {"inactivity_minutes": 20})
    every = (await admin.ok("GET", "/v1/audit"))["entries"]

    async def found(**asked: str) -> list[tuple[str, str]]:
        entries = (await admin.ok("GET", "/v1/audit", params=asked))["entries"]
        return [(one["target"], one["action"]) for one in entries]

    assert await found(key_id=every[0]["key_id"]) == [("bank", "policy.changed"), ("bank", "bot.created")]
    assert await found(action="bot.created") == [("bank", "bot.created"), ("shop", "bot.created")]
    assert await found(target="shop", action="policy.changed") == [("shop", "policy.changed")]
    assert len(await found(**{"from": every[1]["at"]})) == 2
    assert len(await found(to=every[1]["at"])) == 2
    assert (await admin.refused("GET", "/v1/audit", params={"from": "x"}))["status"] == 422


async def test_the_instants_of_an_audit_filter_are_exact(admin: Client, clients: ClientMaker, resources: Resources) -> None:
    """`from` is included and `to` is not, to the millisecond; a key of two bots sees the entries of both and of no other."""
    async with resources.engine.begin() as conn:
        for bot, at in (("shop", "10:00:00.000"), ("bank", "10:00:00.001"), ("desk", "10:00:00.002"), (None, "10:00:00.003")):
            values = {"bot": bot, "at": datetime.fromisoformat(f"2026-11-21T{at}+00:00")}
            await conn.execute(
                text("INSERT INTO audit_log (at, actor, action, bot_id, target) VALUES (:at, 'k', 'x.done', :bot, 't')"), values
            )

    async def seen(client: Client, **asked: str) -> list[str | None]:
        entries = (await client.ok("GET", "/v1/audit", params={"action": "x.done", **asked}))["entries"]
        return [one["bot"] for one in entries]

    start, end = "2026-11-21T10:00:00.001Z", "2026-11-21T10:00:00.002Z"
    assert await seen(admin) == [None, "desk", "bank", "shop"]
    assert await seen(admin, **{"from": start}) == [None, "desk", "bank"]
    assert await seen(admin, to=end) == ["bank", "shop"]
    assert await seen(admin, **{"from": start, "to": end}) == ["bank"]
    assert await seen(await clients("admin", bots=["shop", "bank"])) == ["bank", "shop"]


async def test_an_audit_entry_has_a_limit(admin: Client) -> None:
    """Of a long change the longest values are given by their size; the others stay."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    texts = {"default": "x" * 2_000, **{f"a{letter}": "y" * 2_000 for letter in "abc"}}
    await admin.ok("PUT", "/v1/bots/shop/policy", {"closure_message": {"texts": texts}, "inactivity_minutes": 20})
    (entry, _) = (await admin.ok("GET", "/v1/audit"))["entries"]
    after = entry["detail"]["after"]

    assert after["inactivity_minutes"] == 20
    assert re.fullmatch(r"\(\d+ bytes\)", after["closure_message"])


async def test_lists_are_walked_to_their_end_without_gap_or_repeat(admin: Client) -> None:
    """Bots, versions, keys and audit entries by pages of two."""
    for at in range(5):
        await admin.ok("POST", "/v1/bots", {"id": f"bot-{at}"})
        tag = (await admin.get("/v1/bots/bot-0/policy")).headers["etag"]
        await admin.ok("PUT", "/v1/bots/bot-0/policy", {"inactivity_minutes": 20}, headers={"if-match": tag})
        await admin.ok("POST", "/v1/keys", {"name": f"key {at}", "scopes": ["read"]})
    for path, name, field, count in (
        ("/v1/bots", "bots", "id", 5),
        ("/v1/bots/bot-0/policy/versions", "versions", "version", 6),
        ("/v1/keys", "keys", "id", 6),
        ("/v1/audit", "entries", "id", 15),
    ):
        whole = [item[field] for item in (await admin.ok("GET", path))[name]]
        walked, cursor = [], None
        while True:
            page = await admin.ok("GET", path, params={"limit": 2} | ({"cursor": cursor} if cursor else {}))
            walked += [item[field] for item in page[name]]
            cursor = page["next"]
            if cursor is None:
                break

        assert len(whole) == count
        assert walked == whole


async def test_an_admin_makes_keys_of_scopes_that_their_own_lacks(admin: Client, clients: ClientMaker) -> None:
    """`admin` is the highest scope: a key that only configures hands out those that post and read, and the log says so."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    limited = await clients("admin", bots=["shop"])

    made = await limited.ok("POST", "/v1/keys", {"name": "bot", "scopes": ["ingest", "read"], "bots": ["shop"]})

    assert made["scopes"] == ["ingest", "read"]
    (entry, *_) = (await limited.ok("GET", "/v1/audit"))["entries"]
    assert (entry["action"], entry["detail"]["after"]["scopes"]) == ("key.created", ["ingest", "read"])


async def test_a_limited_admin_makes_keys_for_their_own_bots_alone(admin: Client, clients: ClientMaker) -> None:
    """No key for all bots, none for another's bot, no sight of keys that reach further, and no new bots."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await admin.ok("POST", "/v1/bots", {"id": "bank"})
    limited = await clients("admin", bots=["shop"])
    wide = await admin.ok("POST", "/v1/keys", {"name": "both", "scopes": ["read"], "bots": ["shop", "bank"]})
    own = await limited.ok("POST", "/v1/keys", {"name": "own", "scopes": ["read"], "bots": ["shop"]})

    assert (await limited.refused("POST", "/v1/keys", {"name": "x", "scopes": ["read"]}))["status"] == 403
    others = await limited.refused("POST", "/v1/keys", {"name": "x", "scopes": ["read"], "bots": ["shop", "bank"]})
    nobodys = await limited.refused("POST", "/v1/keys", {"name": "x", "scopes": ["read"], "bots": ["shop", "none"]})
    assert others["errors"][0]["what"].replace("bank", "none") == nobodys["errors"][0]["what"]
    assert (await limited.refused("DELETE", f"/v1/keys/{wide['id']}"))["status"] == 404
    assert own["id"] in {key["id"] for key in (await limited.ok("GET", "/v1/keys"))["keys"]}
    assert wide["id"] not in (await limited.get("/v1/keys")).text
    assert (await limited.refused("POST", "/v1/bots", {"id": "mine"}))["status"] == 403
    assert [bot["id"] for bot in (await limited.ok("GET", "/v1/bots"))["bots"]] == ["shop"]
    assert {entry["bot"] for entry in (await limited.ok("GET", "/v1/audit"))["entries"]} == {"shop"}


async def test_what_could_not_be_archived_is_shown_to_an_admin(admin: Client, resources: Resources) -> None:
    """The latest first, by pages; one with its record, readable where it can be read."""
    session = "018f0000-0000-7000-8000-000000000000"
    good, odd = msgspec.msgpack.encode(["bank", {"n": 1}]), b"\xc1"
    async with resources.engine.begin() as conn:
        for record in (good, odd):
            payload = msgspec.msgpack.encode(RejectedRecord(0, record, {session: [b"id", good, b"other", odd]}))
            await rejects.add(conn, bot="bank", session_id=session, error="no\x00", payload=payload)
    first = await admin.ok("GET", "/v1/rejects?limit=1")
    second = await admin.ok("GET", f"/v1/rejects?limit=1&cursor={first['next']}")
    shown = [page["rejects"][0] for page in (first, second)]
    details = [await admin.ok("GET", f"/v1/rejects/{each['id']}") for each in shown]

    assert second["next"] is None
    assert {(each["session_id"], each["error"]) for each in shown} == {(session, "no\ufffd")}
    assert [each["record"] for each in details] == ["wQ==", ["bank", {"n": 1}]]
    assert details[0]["transcripts"] == {session: [["bank", {"n": 1}], "wQ=="]}


@pytest.mark.parametrize("payload", (b"\xc1", b"", b"\x93\x00\xc4\x03\x81\xc0\x01\x80", b"\x93\x00\xc4\x02\xd4\x01\x80"))
async def test_an_odd_reject_is_shown_too(admin: Client, resources: Resources, payload: bytes) -> None:
    """An unreadable reject hides no others."""
    async with resources.engine.begin() as conn:
        await rejects.add(conn, bot=None, session_id=None, error="no", payload=payload)
    (shown,) = (await admin.ok("GET", "/v1/rejects"))["rejects"]
    detail = await admin.ok("GET", f"/v1/rejects/{shown['id']}")
    again = await admin.request("POST", f"/v1/rejects/{shown['id']}/replay")

    assert detail["record"] is not None
    assert again.status_code in {202, 409}


async def test_what_could_not_be_archived_is_archived_when_it_is_put_back(
    admin: Client, resources: Resources, worker: Worker
) -> None:
    """Gone from the list, in the audit log, and in the archive; a second time there is nothing to put back."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    said = await admin.ok("POST", "/v1/bots/shop/messages", {"user_id": "ann", "role": "user", "text": "hello"})
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions ADD CONSTRAINT never CHECK (user_id <> 'ann')"))
    await admin.ok("POST", f"/v1/sessions/{said['session_id']}/close")
    await worker.archivist.run_once()
    (reject,) = (await admin.ok("GET", "/v1/rejects"))["rejects"]
    async with resources.engine.begin() as conn:
        await conn.execute(text("ALTER TABLE sessions DROP CONSTRAINT never"))

    replies = await asyncio.gather(*(admin.request("POST", f"/v1/rejects/{reject['id']}/replay") for _ in range(3)))
    await worker.archivist.run_once()

    assert sorted(reply.status_code for reply in replies) == [202, 404, 404]
    assert (await admin.ok("GET", "/v1/rejects"))["rejects"] == []
    (read,) = (await admin.ok("GET", f"/v1/sessions/{said['session_id']}/messages"))["messages"]
    assert read["text"] == "hello"
    assert "reject.replayed" in [change["action"] for change in (await admin.ok("GET", "/v1/audit"))["entries"]]


@pytest.mark.parametrize("reject", ("none", "0", "-1", "9" * 19, "9" * 5_000, "1.0", "%00", "\u0661"))
async def test_a_reject_that_there_is_not_is_not_found(admin: Client, reject: str) -> None:
    for method, path in (("GET", f"/v1/rejects/{reject}"), ("POST", f"/v1/rejects/{reject}/replay")):
        assert (await admin.refused(method, path))["status"] == 404
