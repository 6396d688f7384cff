"""Admins see the results of deliveries and replay them; none sees another tenant's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI

from app.api.access import PathTemplates
from app.api.errors import install_error_handlers
from app.api.routes import deliveries, endpoints
from app.clock import wall_ms
from app.config.publish import publish
from app.delivery.dispatcher import Dispatcher
from app.delivery.secret_box import SecretBox
from app.domain.instants import DAY_MS, MINUTE_MS, ms_of, rfc3339
from app.ids import key_digest, new_key
from app.resources import Resources, open_resources
from app.settings import Settings
from tests.delivery.outbox_rows import CLOSED, CLOSURE_MESSAGE, Outbox
from tests.receiver import Behaviour, Receiver, drip, fails, gone, reply

Client = httpx.AsyncClient


class ClientMaker(Protocol):
    async def __call__(self, *scopes: str, bots: list[str] | None = None) -> Client: ...


@pytest.fixture
async def resources(redis_url: str, database_url: str) -> AsyncIterator[Resources]:
    settings = Settings(
        redis_url=redis_url, database_url=database_url, webhook_allow_private=True, delivery_timeout_s=1, api_workers=1
    )
    async with open_resources(settings) as opened:
        yield opened


@pytest.fixture
def app(resources: Resources) -> FastAPI:
    made = FastAPI()
    install_error_handlers(made)
    made.include_router(deliveries.router)
    made.include_router(endpoints.router)
    made.state.resources = resources
    made.state.templates = PathTemplates(made)
    return made


@pytest.fixture
async def clients(app: FastAPI, resources: Resources, outbox: Outbox) -> AsyncIterator[ClientMaker]:
    """Make a client with a key of these scopes and bots."""
    async with AsyncExitStack() as stack:

        async def make(*scopes: str, bots: list[str] | None = None) -> Client:
            key = new_key()
            await outbox.run(
                "INSERT INTO api_keys (id, name, digest, prefix, scopes, bots)"
                " VALUES (CAST(:id AS uuid), 'test', :digest, 'adj_', CAST(:scopes AS text[]), CAST(:bots AS text[]))",
                id=str(uuid4()),
                digest=key_digest(key),
                scopes=list(scopes),
                bots=bots,
            )
            mark = await publish(resources.engine, resources.redis)
            assert await resources.config.caught_up(mark, timeout_s=10)
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test", headers={"authorization": f"Bearer {key}"}
            )
            return await stack.enter_async_context(client)

        yield make


@pytest.fixture
async def admin(clients: ClientMaker) -> Client:
    return await clients("admin")


async def deliver(dispatcher: Dispatcher, now_ms: int | None = None) -> int:
    at_ms = wall_ms() if now_ms is None else now_ms
    await dispatcher.run_once(at_ms)
    await dispatcher.idle()
    return at_ms


async def test_a_delivery_is_shown_with_its_payload_and_each_attempt(
    admin: Client, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """Status, time, duration and the beginning of each reply."""
    endpoint = await outbox.endpoint(receiver.behave("/hook", fails(1)))
    (session,) = await outbox.add()
    now_ms = await deliver(dispatcher)
    await deliver(dispatcher, now_ms + MINUTE_MS)
    row = await outbox.only()
    answer = await admin.get(f"/v1/deliveries/{row.id}")
    shown = answer.json()

    assert answer.status_code == 200
    assert (shown["id"], shown["endpoint_id"], shown["session_id"]) == (str(row.id), endpoint, session)
    assert (shown["status"], shown["attempts"], shown["next_attempt_at"]) == ("delivered", 2, None)
    assert shown["payload"]["data"]["session"]["id"] == session
    assert [(each["attempt"], each["status"], each["reply"]) for each in shown["history"]] == [
        (1, 500, "not now"),
        (2, 200, "ok"),
    ]
    assert all(each["started_at"].endswith("Z") and each["duration_ms"] >= 0 for each in shown["history"])


async def test_a_list_pages_through_everything_once(admin: Client, outbox: Outbox) -> None:
    """Newest first, no row twice and none left out, also where many were made at one instant."""
    await outbox.endpoint("http://127.0.0.1:1/")
    for _ in range(3):
        await outbox.add(5)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = (await admin.get("/v1/deliveries", params={"limit": 4} | ({"cursor": cursor} if cursor else {}))).json()
        seen += [each["id"] for each in page["deliveries"]]
        cursor = page["next"]
        if cursor is None:
            break
    made = {str(row.id): row.created_at for row in await outbox.all()}

    assert len(seen) == len(set(seen)) == 15
    assert [made[each] for each in seen] == sorted(made.values(), reverse=True)


async def test_a_list_is_filtered(admin: Client, outbox: Outbox) -> None:
    """By bot, endpoint, session, event, status and time; each leaves out what it should."""
    first = await outbox.endpoint("http://127.0.0.1:1/a")
    await outbox.endpoint("http://127.0.0.1:1/b", bot="other")
    (session,) = await outbox.add(closure_message=True)
    await outbox.add(2, bot="other")
    await outbox.run("UPDATE deliveries SET status = 'failed' WHERE event = :event AND bot_id = 'shop'", event=CLOSURE_MESSAGE)

    async def count(**filters: str) -> int:
        return len((await admin.get("/v1/deliveries", params=filters)).json()["deliveries"])

    assert await count() == 4
    assert await count(bot="shop") == 2
    assert await count(endpoint_id=first) == 2
    assert await count(session_id=session) == 2
    assert await count(event=CLOSED) == 3
    assert await count(status="failed") == 1
    assert await count(since=rfc3339(wall_ms() - MINUTE_MS)) == 4
    assert await count(since=rfc3339(wall_ms() + MINUTE_MS)) == 0


@pytest.mark.parametrize(
    "query", ("status=lost", "limit=0", "limit=201", "cursor=nonsense", "endpoint_id=x", "since=yesterday", "colour=red")
)
async def test_what_makes_no_sense_is_refused(admin: Client, query: str) -> None:
    """A filter that is misspelt must not be taken for no filter."""
    answer = await admin.get(f"/v1/deliveries?{query}")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["where"] == query.partition("=")[0]


async def test_a_dead_letter_is_replayed_under_its_old_id(
    admin: Client, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """It goes out again, its schedule begins anew, and the attempts of before are still there."""
    await outbox.endpoint(receiver.behave("/hook", fails(2)))
    await outbox.add()
    now_ms = await deliver(dispatcher)
    await outbox.run("UPDATE deliveries SET status = 'failed', failed_at = now()")
    row = await outbox.only()
    answer = await admin.post(f"/v1/deliveries/{row.id}/replay")
    await deliver(dispatcher)
    waiting = await outbox.only()
    await deliver(dispatcher, now_ms + MINUTE_MS)

    assert answer.status_code == 202
    assert answer.json()["status"] == "pending"
    assert ms_of(waiting.next_attempt_at) - wall_ms() < 10_000  # the first delay of the schedule, not the second
    assert await outbox.statuses() == {"delivered": 1}
    assert {request.id for request in receiver.requests} == {str(row.id)}
    assert [each.attempt for each in await outbox.attempts()] == [1, 2, 3]


async def test_what_was_delivered_can_be_sent_again(
    admin: Client, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """A receiver that lost its own data asks for it; the id shows that it may already have it."""
    await outbox.endpoint(receiver.url())
    await outbox.add()
    await deliver(dispatcher)
    await admin.post(f"/v1/deliveries/{(await outbox.only()).id}/replay")
    await deliver(dispatcher)

    assert len(receiver.requests) == 2
    assert len({request.id for request in receiver.requests}) == 1


async def test_what_is_pending_is_not_replayed(admin: Client, outbox: Outbox) -> None:
    """It goes out by itself; two schedules for one delivery there are not."""
    await outbox.endpoint("http://127.0.0.1:1/")
    await outbox.add()

    assert (await admin.post(f"/v1/deliveries/{(await outbox.only()).id}/replay")).status_code == 409


async def test_nothing_is_replayed_to_a_disabled_endpoint(admin: Client, outbox: Outbox) -> None:
    """It would only be cancelled; the error says how to proceed."""
    await outbox.endpoint("http://127.0.0.1:1/")
    await outbox.add()
    await outbox.run("UPDATE deliveries SET status = 'cancelled', failed_at = now()")
    await outbox.run("UPDATE endpoints SET enabled = false")
    one = await admin.post(f"/v1/deliveries/{(await outbox.only()).id}/replay")
    many = await admin.post("/v1/deliveries/replay", json={"bot": "shop", "since": rfc3339(0)})

    assert one.status_code == 409
    assert "enable" in one.json()["hint"]
    assert many.json() == {"replayed": 0}


async def test_all_dead_letters_since_a_time_are_replayed(
    admin: Client, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """Of one bot or endpoint, failed and cancelled alike; what failed before, and other bots', stay."""
    endpoint = await outbox.endpoint(receiver.url("/shop"))
    await outbox.endpoint(receiver.url("/other"), bot="other")
    await outbox.add(6)
    await outbox.add(2, bot="other")
    await outbox.run("UPDATE deliveries SET status = 'failed', failed_at = now()")
    rows = [row for row in await outbox.all() if str(row.endpoint_id) == endpoint]
    await outbox.run("UPDATE deliveries SET failed_at = now() - interval '2 days' WHERE id = :id", id=rows[0].id)
    await outbox.run("UPDATE deliveries SET status = 'cancelled' WHERE id = :id", id=rows[1].id)
    answer = await admin.post("/v1/deliveries/replay", json={"endpoint_id": endpoint, "since": rfc3339(wall_ms() - DAY_MS)})
    await deliver(dispatcher)

    assert answer.json() == {"replayed": 5}
    assert len(receiver.at("/shop")) == 5
    assert receiver.at("/other") == []
    assert await outbox.statuses() == {"delivered": 5, "failed": 3}


async def test_a_replay_must_say_of_what(admin: Client) -> None:
    """A missing filter must not mean every delivery of every bot."""
    answer = await admin.post("/v1/deliveries/replay", json={"since": rfc3339(0)})

    assert answer.status_code == 422
    assert "`bot` or `endpoint_id`" in answer.json()["errors"][0]["what"]


async def test_a_test_is_sent_signed_and_its_answer_shown(admin: Client, outbox: Outbox, receiver: Receiver) -> None:
    """Right now, as genuine as any webhook, and kept where deliveries are listed."""
    endpoint = await outbox.endpoint(receiver.behave("/hook", reply(201, b"hello")))
    answer = await admin.post(f"/v1/endpoints/{endpoint}/test")
    shown = answer.json()
    (request,) = receiver.requests
    (listed,) = (await admin.get("/v1/deliveries")).json()["deliveries"]

    assert (shown["delivered"], shown["status"], shown["reply"], shown["error"]) == (True, 201, "hello", None)
    assert request.verify(outbox.secrets[endpoint])["type"] == "webhook.test"
    assert (listed["id"], listed["event"], listed["status"]) == (request.id, "webhook.test", "delivered")
    assert shown["delivery_id"] == request.id


@pytest.mark.parametrize("case", ((reply(500), "500"), (gone(), "410"), (drip(), "timeout")), ids=["fails", "gone", "drips"])
async def test_a_test_that_fails_says_why_and_changes_nothing(
    admin: Client, outbox: Outbox, receiver: Receiver, case: tuple[Behaviour, str]
) -> None:
    """Trying an endpoint is not yet giving up on it, not even after a 410."""
    behaviour, word = case
    endpoint = await outbox.endpoint(receiver.behave("/hook", behaviour))
    shown = (await admin.post(f"/v1/endpoints/{endpoint}/test")).json()

    assert shown["delivered"] is False
    assert word in shown["error"]
    assert (await outbox.endpoint_row(endpoint)).enabled
    assert await outbox.health() == []


async def test_a_test_shows_nothing_of_a_place_that_a_limited_admin_may_not_name(
    admin: Client, outbox: Outbox, receiver: Receiver
) -> None:
    """Its reply is what would be worth reading: a name that has moved inside is not asked."""
    endpoint = await outbox.endpoint(receiver.url(host="localhost"))
    await outbox.run("UPDATE endpoints SET private_allowed = false WHERE id = :id", id=endpoint)
    shown = (await admin.post(f"/v1/endpoints/{endpoint}/test")).json()

    assert (shown["delivered"], shown["status"], shown["reply"]) == (False, None, "")
    assert shown["error"].startswith("address_refused")
    assert receiver.connections == 0


async def test_a_test_that_is_taken_lets_go_what_waited(
    admin: Client, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """After repairing a receiver an admin need not wait for the breaker."""
    endpoint = await outbox.endpoint(receiver.behave("/hook", reply(500)))
    await outbox.add(10)
    now_ms = await deliver(dispatcher)
    receiver.behave("/hook", reply())
    await deliver(dispatcher, now_ms + 12_000)
    waiting = await outbox.statuses()
    await admin.post(f"/v1/endpoints/{endpoint}/test")
    await deliver(dispatcher, now_ms + 12_000)

    assert waiting == {"pending": 10}
    assert await outbox.statuses() == {"delivered": 11}


async def test_a_rotated_secret_overlaps_with_the_old_one(
    admin: Client, dispatcher: Dispatcher, outbox: Outbox, receiver: Receiver
) -> None:
    """Receivers change over at their leisure: both verify for the time given, then the new one alone."""
    endpoint = await outbox.endpoint(receiver.url())
    old = outbox.secrets[endpoint]
    answer = await admin.post(f"/v1/endpoints/{endpoint}/rotate-secret", json={"previous_valid_s": 3600})
    new = answer.json()["secret"]
    await outbox.add(2)
    await outbox.run(
        "UPDATE deliveries SET next_attempt_at = now() + interval '2 hours'"
        " WHERE id = (SELECT id FROM deliveries ORDER BY id LIMIT 1)"
    )
    now_ms = await deliver(dispatcher)
    await deliver(dispatcher, now_ms + 2 * 3_600_000 + MINUTE_MS)
    during, after = receiver.requests

    assert new.startswith("whsec_")
    assert new != old
    assert during.verify(old) == during.verify(new)
    assert after.is_signed_with(new)
    assert not after.is_signed_with(old)


async def test_the_overlap_is_a_day_unless_said_otherwise(admin: Client, outbox: Outbox) -> None:
    """And may be none at all, for a secret that leaked."""
    endpoint = await outbox.endpoint("http://127.0.0.1:1/")
    await admin.post(f"/v1/endpoints/{endpoint}/rotate-secret")
    day = await outbox.endpoint_row(endpoint)
    await admin.post(f"/v1/endpoints/{endpoint}/rotate-secret", json={"previous_valid_s": 0, "force": True})
    none = await outbox.endpoint_row(endpoint)
    too_long = await admin.post(f"/v1/endpoints/{endpoint}/rotate-secret", json={"previous_valid_s": 10**9})

    assert abs(ms_of(day.previous_secret_expires_at) - wall_ms() - DAY_MS) < 60_000
    assert ms_of(none.previous_secret_expires_at) <= wall_ms() + 1_000
    assert too_long.status_code == 422


@pytest.mark.parametrize("at_once", (True, False))
async def test_a_repeated_rotation_keeps_what_the_first_one_promised(admin: Client, outbox: Outbox, at_once: bool) -> None:  # noqa: FBT001
    """A retry after a lost answer, or two admins at once: one secret is made, and the original signs until it was to."""
    endpoint = await outbox.endpoint("http://127.0.0.1:1/")
    path = f"/v1/endpoints/{endpoint}/rotate-secret"
    if at_once:
        answers = list(await asyncio.gather(admin.post(path), admin.post(path)))
    else:
        answers = [await admin.post(path), await admin.post(path, json={"previous_valid_s": 0})]
    done, refused = sorted(answers, key=lambda answer: answer.status_code)
    row = await outbox.endpoint_row(endpoint)

    assert (done.status_code, refused.status_code) == (200, 409)
    assert done.json()["previous_valid_until"] in refused.json()["detail"]
    assert "force" in refused.json()["hint"]
    assert SecretBox.of(Settings()).decrypt(row.secret) == done.json()["secret"]
    assert row.previous_secret == outbox.secrets[endpoint]


async def test_a_rotation_may_follow_when_the_previous_secret_is_over_or_by_force(admin: Client, outbox: Outbox) -> None:
    """A secret that leaked is not kept for a day because another was made just before."""
    endpoint = await outbox.endpoint("http://127.0.0.1:1/")
    path = f"/v1/endpoints/{endpoint}/rotate-secret"
    first = await admin.post(path, json={"previous_valid_s": 0})
    second = await admin.post(path)
    third = await admin.post(path, json={"previous_valid_s": 60, "force": True})
    row = await outbox.endpoint_row(endpoint)

    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 200]
    box = SecretBox.of(Settings())
    assert box.decrypt(row.secret) == third.json()["secret"]
    assert box.decrypt(row.previous_secret) == second.json()["secret"]


async def test_what_admins_do_is_in_the_audit_log(admin: Client, outbox: Outbox) -> None:
    """It has the key that replayed or changed a secret, and no secret."""
    endpoint = await outbox.endpoint("http://127.0.0.1:1/")
    await outbox.add(2)
    await outbox.run("UPDATE deliveries SET status = 'failed', failed_at = now()")
    await admin.post(f"/v1/deliveries/{(await outbox.all())[0].id}/replay")
    await admin.post("/v1/deliveries/replay", json={"bot": "shop", "since": rfc3339(0)})
    new = (await admin.post(f"/v1/endpoints/{endpoint}/rotate-secret")).json()["secret"]
    logged = await outbox.run("SELECT * FROM audit_log ORDER BY id")

    assert [row.action for row in logged] == ["delivery.replayed", "deliveries.replayed", "endpoint.secret_rotated"]
    assert {(row.actor, row.bot_id) for row in logged} == {("test", "shop")}
    assert logged[1].detail["replayed"] == 1
    assert new not in str(logged)
    assert outbox.secrets[endpoint] not in str(logged)


async def test_another_tenants_webhooks_do_not_exist(clients: ClientMaker, outbox: Outbox, receiver: Receiver) -> None:
    """A key for some bots can neither see nor touch the deliveries and endpoints of others, by any route."""
    endpoint = await outbox.endpoint(receiver.url(), bot="theirs")
    await outbox.add(bot="theirs")
    row = await outbox.only()
    await outbox.run("UPDATE deliveries SET status = 'failed', failed_at = now()")
    mine: Client = await clients("admin", bots=["mine"])
    answers = [
        await mine.get(f"/v1/deliveries/{row.id}"),
        await mine.get("/v1/deliveries", params={"bot": "theirs"}),
        await mine.post(f"/v1/deliveries/{row.id}/replay"),
        await mine.post("/v1/deliveries/replay", json={"bot": "theirs", "since": rfc3339(0)}),
        await mine.post("/v1/deliveries/replay", json={"endpoint_id": endpoint, "since": rfc3339(0)}),
        await mine.post(f"/v1/endpoints/{endpoint}/test"),
        await mine.post(f"/v1/endpoints/{endpoint}/rotate-secret"),
    ]
    listed = await mine.get("/v1/deliveries")

    assert [answer.status_code for answer in answers] == [404] * 7
    assert listed.json() == {"deliveries": [], "next": None}
    assert receiver.requests == []
    assert (await outbox.endpoint_row(endpoint)).previous_secret is None


@pytest.mark.parametrize("scopes", (("read",), ("ingest",), ("ingest", "read")))
async def test_only_admins_may(clients: ClientMaker, outbox: Outbox, scopes: tuple[str, ...]) -> None:
    """Payloads hold what users wrote, and secrets sign: other scopes get nothing of it."""
    endpoint = await outbox.endpoint("http://127.0.0.1:1/")
    await outbox.add()
    row = await outbox.only()
    client: Client = await clients(*scopes)
    answers = [
        await client.get("/v1/deliveries"),
        await client.get(f"/v1/deliveries/{row.id}"),
        await client.post(f"/v1/deliveries/{row.id}/replay"),
        await client.post("/v1/deliveries/replay", json={"bot": "shop", "since": rfc3339(0)}),
        await client.post(f"/v1/endpoints/{endpoint}/test"),
        await client.post(f"/v1/endpoints/{endpoint}/rotate-secret"),
    ]

    assert [answer.status_code for answer in answers] == [403] * 6


async def test_what_does_not_exist_is_not_found(admin: Client) -> None:
    """Neither the id of nothing nor what is no id."""
    unknown = uuid4()

    assert (await admin.get(f"/v1/deliveries/{unknown}")).status_code == 404
    assert (await admin.post(f"/v1/deliveries/{unknown}/replay")).status_code == 404
    assert (await admin.post(f"/v1/endpoints/{unknown}/test")).status_code == 404
    assert (await admin.post(f"/v1/endpoints/{unknown}/rotate-secret")).status_code == 404
    assert (await admin.get("/v1/deliveries/nonsense")).status_code == 404
