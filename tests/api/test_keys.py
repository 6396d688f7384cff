"""Keys expire, are rotated and revoked, and a process that cannot know of a revocation refuses them."""

import string
from datetime import timedelta
from pathlib import Path

import pydantic
import pytest
from sqlalchemy import text

from app.api.routes.saved_views import MOST_VIEWS
from app.archive import keys
from app.archive.tables import instant
from app.clock import monotonic_ms
from app.config.change import Keyring
from app.config.key_usage import save_key_uses
from app.config.publish import publish
from app.domain.instants import rfc3339
from app.ids import is_mistyped, new_id, new_key
from app.resources import Resources
from app.settings import Settings
from tests.api.conftest import Client, ClientMaker

BODY = {"name": "bot", "scopes": ["read"]}
BOT = {"user_id": "u", "role": "user", "text": "hi"}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def status_with(client: Client, key: str) -> int:
    return (await client.get("/v1/sessions", headers=bearer(key))).status_code


def test_a_key_carries_256_bits_and_a_checksum() -> None:
    """One changed character is recognised without a look-up; keys of 0.1.0 had no checksum and are not mistyped."""
    key = new_key()
    spoiled = [key[:at] + ("A" if key[at] != "A" else "B") + key[at + 1 :] for at in range(4, len(key))]

    assert len(key) == 4 + 43 + 6
    assert set(key) <= set(string.ascii_letters + string.digits + "-_")
    assert not is_mistyped(key)
    assert all(map(is_mistyped, spoiled))
    assert not is_mistyped(key[:47])
    assert not is_mistyped("adj_" + "é" * 43)


async def test_a_key_of_0_1_0_works_and_a_mistyped_one_is_named(admin: Client, resources: Resources) -> None:
    """The old form is accepted as before; the hint says that a key was cut or mistyped."""
    old = new_key()[:47]
    async with resources.engine.begin() as conn:
        await keys.create(conn, new_id(0), old, name="old", scopes=["read"], bots=None)
    await resources.config.caught_up(await publish(resources.engine, resources.redis), timeout_s=5)
    key = (await admin.ok("POST", "/v1/keys", BODY))["key"]
    refused = await admin.refused("GET", "/v1/sessions", headers=bearer(key[:-1] + ("A" if key[-1] != "A" else "Q")))

    assert await status_with(admin, old) == 200
    assert refused["status"] == 401
    assert "checksum" in refused["hint"]


async def test_a_key_is_refused_from_its_expiry_on(admin: Client, resources: Resources) -> None:
    """Without a sweep and without a publication: each process compares the instant. A later expiry makes it valid again."""
    now_ms = resources.clock.now_ms()
    made = await admin.ok("POST", "/v1/keys", BODY | {"expires_at": rfc3339(now_ms + 60_000), "note": "for a minute"})
    before = await status_with(admin, made["key"])
    changed = await admin.ok("PATCH", f"/v1/keys/{made['id']}", {"expires_at": rfc3339(now_ms - 1)})
    after = await status_with(admin, made["key"])
    forever = await admin.ok("PATCH", f"/v1/keys/{made['id']}", {"expires_at": None, "note": None})

    assert (made["expires_at"], made["note"]) == (rfc3339(now_ms + 60_000), "for a minute")
    assert (before, after) == (200, 401)
    assert changed["note"] == "for a minute"
    assert (forever["expires_at"], forever["note"], forever["name"]) == (None, None, "bot")
    assert await status_with(admin, made["key"]) == 200


@pytest.mark.parametrize(
    "wrong", ({"name": None}, {"expires_at": "tomorrow"}, {"expires_at": "2030-01-01T00:00:00"}, {"scopes": []})
)
async def test_a_key_is_changed_by_valid_values_alone(admin: Client, wrong: dict[str, object]) -> None:
    """A key has a name; an instant has an offset; scopes are not changed."""
    made = await admin.ok("POST", "/v1/keys", BODY)

    assert (await admin.refused("PATCH", f"/v1/keys/{made['id']}", wrong))["status"] == 422


async def test_a_rotated_key_works_beside_its_successor_for_a_while(admin: Client, resources: Resources) -> None:
    """The new one has the same rights; the old one ends after the overlap, and never later than it would have."""
    old = await admin.ok("POST", "/v1/keys", BODY | {"note": "the bot's"})
    new = await admin.ok("POST", f"/v1/keys/{old['id']}/rotate", {"previous_valid_s": 3600})
    shown = {key["id"]: key for key in (await admin.ok("GET", "/v1/keys"))["keys"]}
    both = [await status_with(admin, each["key"]) for each in (old, new)]
    await admin.ok("POST", f"/v1/keys/{old['id']}/rotate", {"previous_valid_s": 0})
    then = [await status_with(admin, each["key"]) for each in (old, new)]

    assert new["key"] != old["key"]
    assert (new["scopes"], new["bots"], new["name"], new["note"], new["expires_at"]) == (["read"], None, "bot", "the bot's", None)
    assert shown[old["id"]]["expires_at"] > rfc3339(resources.clock.now_ms() + 3_500_000)
    assert both == [200, 200]
    assert then == [401, 200]


async def test_a_revoked_key_is_neither_changed_nor_rotated(admin: Client) -> None:
    """409: what ended does not begin again."""
    made = await admin.ok("POST", "/v1/keys", BODY)
    await admin.ok("DELETE", f"/v1/keys/{made['id']}")

    assert (await admin.refused("PATCH", f"/v1/keys/{made['id']}", {"note": "x"}))["status"] == 409
    assert (await admin.refused("POST", f"/v1/keys/{made['id']}/rotate"))["status"] == 409


async def test_a_revocation_takes_what_the_key_created_where_asked(admin: Client) -> None:
    """Child, grandchild and a successor by rotation; without `created` the key alone."""
    parent = await admin.ok("POST", "/v1/keys", {"name": "p", "scopes": ["admin"]})
    child = await admin.ok("POST", "/v1/keys", {"name": "c", "scopes": ["admin"]}, headers=bearer(parent["key"]))
    grandchild = await admin.ok("POST", "/v1/keys", BODY, headers=bearer(child["key"]))
    rotated = await admin.ok("POST", f"/v1/keys/{grandchild['id']}/rotate", headers=bearer(child["key"]))
    await admin.ok("DELETE", f"/v1/keys/{child['id']}")
    alone = [await status_with(admin, each["key"]) for each in (grandchild, rotated)]
    await admin.ok("DELETE", f"/v1/keys/{parent['id']}?created=true")

    assert alone == [200, 200]
    assert [await status_with(admin, each["key"]) for each in (parent, child, grandchild, rotated)] == [401] * 4
    entries = (await admin.ok("GET", "/v1/audit"))["entries"]
    assert [each["target"] for each in entries[:3]] == [rotated["id"], grandchild["id"], parent["id"]]


async def test_a_key_may_revoke_itself(clients: ClientMaker, admin: Client) -> None:
    """An admin who leaves hands in the key with the key."""
    leaving = await clients("admin")
    (own,) = [key for key in (await admin.ok("GET", "/v1/keys"))["keys"] if key["scopes"] == ["admin"]]
    await leaving.ok("DELETE", f"/v1/keys/{own['id']}")

    assert (await leaving.refused("GET", "/v1/keys"))["status"] == 401


async def test_a_revoked_key_changes_nothing_before_its_revocation_is_known(
    admin: Client, clients: ClientMaker, resources: Resources
) -> None:
    """Postgres has the revocation, no process has learned of it: each change is refused and rolled back."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    endpoint = await admin.ok("POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/"})
    revoked = await clients("admin")
    async with resources.engine.begin() as conn:
        await conn.execute(text("UPDATE api_keys SET revoked_at = now() WHERE scopes = '{admin}'"))
    before = await _configuration(admin)
    for method, path, body in (
        ("POST", "/v1/keys", {"name": "mine", "scopes": ["admin"]}),
        ("POST", "/v1/bots", {"id": "mine"}),
        ("PATCH", "/v1/bots/shop", {"name": "mine"}),
        ("DELETE", "/v1/bots/shop", None),
        ("PUT", "/v1/bots/shop/policy", {"inactivity_minutes": 60}),
        ("POST", f"/v1/endpoints/{endpoint['id']}/rotate-secret", {"force": True}),
        ("POST", "/v1/deliveries/replay", {"bot": "shop", "since": "2026-01-01T00:00:00Z"}),
    ):
        assert (await revoked.refused(method, path, body))["status"] == 401, f"{method} {path}"

    assert await _configuration(admin) == before


async def _configuration(admin: Client) -> list[str]:
    paths = ("/v1/keys", "/v1/bots", "/v1/bots/shop/policy", "/v1/bots/shop/endpoints", "/v1/audit")
    return [(await admin.get(path)).text for path in paths]


async def test_a_process_without_news_refuses_admins_first_and_then_every_key(
    admin: Client, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 5 s without Redis a revocation may be unknown here; after CONFIG_MAX_AGE_S no key is trusted."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    await resources.config.stop()
    statuses = []
    for later_ms in (4_000, 6_000, 61_000):
        monkeypatch.setattr("app.config.follower.monotonic_ms", lambda later_ms=later_ms: monotonic_ms() + later_ms)
        replies = [
            await admin.get("/v1/keys"),
            await admin.get("/v1/sessions"),
            await admin.post("/v1/bots/shop/messages", json=BOT),
        ]
        statuses.append([reply.status_code for reply in replies])

    assert statuses == [[200, 200, 200], [503, 200, 200], [503, 503, 503]]


async def test_the_last_use_of_a_key_is_saved_at_most_once_a_minute(
    admin: Client, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By API process and worker, not by the request. A key that is not used is not written."""
    made = await admin.ok("POST", "/v1/keys", BODY)
    saved = []
    now_ms = resources.clock.now_ms()
    for later_ms in (0, 59_000, 61_000):
        assert await status_with(admin, made["key"]) == 200
        monkeypatch.setattr(resources.clock, "now_ms", lambda later_ms=later_ms: now_ms + later_ms)
        await resources.key_usage.run_once()
        await save_key_uses(resources.engine, resources.redis)
        saved.append({key["id"]: key["last_used_at"] for key in (await admin.ok("GET", "/v1/keys"))["keys"]}[made["id"]])
    async with resources.engine.connect() as conn:
        revision = await conn.scalar(text("SELECT max(revision) FROM api_keys"))
    await save_key_uses(resources.engine, resources.redis)

    assert made["last_used_at"] is None
    assert saved == [rfc3339(now_ms), rfc3339(now_ms), rfc3339(now_ms + 61_000)]
    async with resources.engine.connect() as conn:
        assert await conn.scalar(text("SELECT max(revision) FROM api_keys")) == revision


async def test_uses_are_kept_while_redis_is_down(admin: Client, resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent the next time."""
    await admin.ok("GET", "/v1/keys")

    async def refuse(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(resources.redis, "hset", refuse)
        await resources.key_usage.run_once()
    kept = set(resources.config.used_keys)
    await resources.key_usage.run_once()

    assert len(kept) == 1
    assert resources.config.used_keys == set()


async def test_a_key_of_the_environment_is_saved_once_and_stays_revoked(
    admin: Client, resources: Resources, settings: Settings, tmp_path: Path
) -> None:
    """Every start saves it; a start after its revocation brings nothing back."""
    key = new_key()
    (tmp_path / "key").write_text(f"{key}\n")
    given = Settings(redis_url=settings.redis_url, database_url=settings.database_url, adjourn_admin_key_file=tmp_path / "key")
    keyring = Keyring(resources.engine, resources.writer)
    first = [await keyring.ensure(given.admin_key or "") for _ in range(2)]
    accepted = await status_with(admin, key)
    (row,) = [each for each in await keyring.rows() if each.name == "environment"]
    await keyring.revoke(str(row.id))

    assert first == [True, False]
    assert accepted == 200
    assert not await keyring.ensure(key)
    assert await status_with(admin, key) == 401


@pytest.mark.parametrize("weak", ("adj_short", "secret", "adj_" + "x" * 42))
def test_a_weak_key_of_the_environment_is_refused(weak: str, tmp_path: Path) -> None:
    """Fewer characters than 256 bits need, from the variable or from the file; the error does not quote a file's content."""
    (tmp_path / "key").write_text(weak)
    with pytest.raises(pydantic.ValidationError):
        Settings(adjourn_admin_key=weak)
    with pytest.raises(pydantic.ValidationError):
        Settings(adjourn_admin_key_file=tmp_path / "key")


async def test_an_expired_key_counts_as_none_for_the_first_start(resources: Resources) -> None:
    """Else an installation whose only admin key has expired would have no way in."""
    keyring = Keyring(resources.engine, resources.writer)
    async with resources.engine.begin() as conn:
        expired = instant(resources.clock.now_ms()) - timedelta(days=1)
        await keys.create(conn, new_id(0), new_key(), name="x", scopes=["admin"], bots=None, expires_at=expired)

    assert await keyring.create_first() is not None
    assert await keyring.create_first() is None


async def test_the_audit_log_refuses_every_change(admin: Client, resources: Resources) -> None:
    """Also for the role that owns the table."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    for statement in ("UPDATE audit_log SET actor = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"):
        with pytest.raises(Exception, match="its rows are only added"):
            async with resources.engine.begin() as conn:
                await conn.execute(text(statement))

    assert len((await admin.ok("GET", "/v1/audit"))["entries"]) == 1


async def test_saved_views_belong_to_a_key_and_its_successor(admin: Client, clients: ClientMaker) -> None:
    """A name is replaced, another key sees none, the key of a rotation has them, and there are 50 at most."""
    reader = await clients("read")
    for name, query in (("b", "bot=x"), ("a", ""), ("b", "bot=y&reason=api")):
        saved = await reader.ok("PUT", f"/v1/saved-views/{name}", {"query": query})
        assert (saved["name"], saved["query"]) == (name, query)
    (own,) = [key for key in (await admin.ok("GET", "/v1/keys"))["keys"] if key["scopes"] == ["read"]]
    rotated = await admin.ok("POST", f"/v1/keys/{own['id']}/rotate")

    assert (await admin.ok("GET", "/v1/saved-views"))["views"] == []
    found = await reader.ok("GET", "/v1/saved-views", headers={"authorization": f"Bearer {rotated['key']}"})
    assert [(view["name"], view["query"]) for view in found["views"]] == [("a", ""), ("b", "bot=y&reason=api")]
    for number in range(MOST_VIEWS - 2):
        await reader.ok("PUT", f"/v1/saved-views/{number}", {"query": ""})
    assert (await reader.refused("PUT", "/v1/saved-views/more", {"query": ""}))["status"] == 409
    await reader.ok("PUT", "/v1/saved-views/a", {"query": "bot=z"})
    await reader.ok("DELETE", "/v1/saved-views/a")
    assert (await reader.refused("DELETE", "/v1/saved-views/a"))["status"] == 404
    for name, query in (("x%00", ""), ("x" * 101, ""), ("x", "a\n"), ("x", "a" * 4001)):
        assert (await reader.refused("PUT", f"/v1/saved-views/{name}", {"query": query}))["status"] == 422
