"""Text that a policy keeps out of transcripts is nowhere: not in Redis, not in Postgres, not in a webhook."""

from typing import Any

import pytest
from sqlalchemy import text

from app.resources import Resources
from app.worker import Worker
from tests.api.conftest import Client

PERSONAL = ("ann@example.com", "+5491122334455", "4111 1111 1111 1111", "DE89370400440532013000", "192.0.2.17", "ORD-1234")
SAID = " and ".join(PERSONAL)


async def everything(resources: Resources) -> str:
    """All values of Redis and all rows of Postgres, as text."""
    redis: Any = resources.redis
    found = []
    async for key in redis.scan_iter():
        kind = await redis.type(key)
        read = {b"string": redis.get, b"hash": redis.hgetall, b"stream": redis.xrange}.get(kind)
        found.append(key if read is None else (key, await read(key)))
    async with resources.engine.connect() as conn:
        tables = await conn.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        for table in tables.all():
            found += [str(row) for row in (await conn.execute(text(f'SELECT * FROM "{table}"'))).all()]  # noqa: S608 - its own tables
    return repr(found)


@pytest.mark.parametrize(("transcript", "traces"), (("redacted", False), ("none", False), ("full", True)))
async def test_personal_data_is_stored_only_where_the_policy_says_so(
    admin: Client, worker: Worker, resources: Resources, *, transcript: str, traces: bool
) -> None:
    """Of an open session, a closed one, a late entry and one without a session; before and after the archive."""
    policy = {"transcript": transcript, "redact_masks": ["ORD-####"] if transcript == "redacted" else []}
    await admin.ok("POST", "/v1/bots", {"id": "shop", "policy": policy})
    await admin.ok(
        "POST", "/v1/bots/shop/endpoints", {"url": "http://127.0.0.1:9999/", "events": ["session.updated", "session.closed"]}
    )
    entry = {"user_id": "u1", "role": "user", "text": SAID, "metadata": {"raw": [SAID]}}
    opened = await admin.ok("POST", "/v1/bots/shop/messages", entry)
    live = await everything(resources)
    await admin.ok("POST", f"/v1/sessions/{opened['session_id']}/close")
    survey = {"type": "survey.sent", "role": "bot"}
    await admin.ok("POST", "/v1/bots/shop/messages", entry | survey)
    await admin.ok("POST", "/v1/bots/shop/messages", entry | survey | {"user_id": "u2"})
    waiting = await everything(resources)
    await worker.archivist.run_once()
    archived = await everything(resources)
    shown = await admin.ok("GET", f"/v1/sessions/{opened['session_id']}/messages")

    for stored in (live, waiting, archived, str(shown)):
        assert [personal in stored for personal in PERSONAL] == [traces] * len(PERSONAL)
    assert len(shown["messages"]) == 2
    assert ("[email] and [phone] and [card]" in str(shown)) == (transcript == "redacted")
