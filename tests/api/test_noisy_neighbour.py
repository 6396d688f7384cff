"""A key that sends a hundred times as much as another delays it by little: counted in requests, since speed is measured apart.

`python -m bench.neighbour` measures the same with processes, sockets, a worker and receivers.
"""

import asyncio

import pytest

from app.settings import Settings
from tests.api.conftest import Client, ClientMaker, Json

AT_ONCE = 20


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"redis_timeout_s": 30, "ingest_deadline_s": 30, "rate_entries": 0, "rate_bytes": 0, "rate_requests": 0}
    )


HELLO: Json = {"user_id": "ann", "role": "user", "text": "hello"}
DEEP = {"topic": {"a": {"b": {"c": [list(range(60))] * 30}}}}


@pytest.mark.parametrize("users", (1, 10))
async def test_an_entry_waits_for_few_batches_of_a_busy_key(clients: ClientMaker, admin: Client, users: int) -> None:
    """Twenty batches of entries that take a millisecond each are under way: an entry of another key, sent last, waits for few."""
    await admin.ok("POST", "/v1/bots", {"id": "busy"})
    await admin.ok("POST", "/v1/bots", {"id": "quiet"})
    busy, quiet = await clients("ingest"), await clients("ingest")
    answered: list[tuple[str, int]] = []

    async def send(client: Client, bot: str, path: str, json: object) -> None:
        reply = await client.post(f"/v1/bots/{bot}/{path}", json=json)
        answered.append((bot, reply.status_code))

    batch = [HELLO | {"context": DEEP, "user_id": f"user-{number % users}"} for number in range(10)]
    sent = [asyncio.create_task(send(busy, "busy", "messages/batch", batch)) for _ in range(AT_ONCE)]
    sent.append(asyncio.create_task(send(quiet, "quiet", "messages", HELLO)))
    await asyncio.gather(*sent)

    assert sorted(answered) == [("busy", 200)] * AT_ONCE + [("quiet", 200)]
    assert answered.index(("quiet", 200)) <= AT_ONCE // 4
