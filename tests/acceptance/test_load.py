"""Many clients at once through two API processes while two workers run: nothing is lost, doubled or out of order."""

import asyncio
import random
from collections import Counter, defaultdict

import asyncpg
import httpx
import msgspec
from msgspec import Struct

from tests.acceptance.system import asked, system, until

BOT = "busy"
CONVERSATIONS = 2_000
MESSAGES = 20_000
CLIENTS = 50

_COUNT = "SELECT count(*) FROM sessions"
_SESSIONS = "SELECT id::text, conversation_id, entries, reason FROM sessions"
_MESSAGES = "SELECT session_id::text, sequence, message_id FROM messages"


class Answer(Struct, frozen=True):
    """The part of a receipt that is compared."""

    message_id: str
    session_id: str
    session: str
    sequence: int
    duplicate: bool


_decode = msgspec.json.Decoder(Answer).decode


class Caller:
    """One client: a connection of its own, one request at a time. Raw, since 20,000 requests by a library take minutes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = (
            f"POST /v1/bots/{BOT}/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()

    @classmethod
    async def connect(cls, url: httpx.URL, key: str) -> "Caller":
        return cls(*await asyncio.open_connection(url.host, url.port), key)

    async def post(self, entry: dict[str, str]) -> Answer:
        body = msgspec.json.encode(entry)
        self._writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        start = head.index(b"content-length:") + 15
        answer = await self._reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
        assert head.startswith(b"http/1.1 200"), answer
        return _decode(answer)

    def close(self) -> None:
        self._writer.close()


def _entries() -> list[dict[str, str]]:
    """All but the last of each conversation, shuffled: any client may hold any conversation's next message."""
    users = [f"user-{number % CONVERSATIONS}" for number in range(MESSAGES - CONVERSATIONS)]
    entries = [{"user_id": user, "role": "user", "message_id": f"m{number}", "text": "hi"} for number, user in enumerate(users)]
    random.Random(7).shuffle(entries)  # noqa: S311 - the same order each time
    return entries


def _ends() -> list[dict[str, str]]:
    return [
        {"user_id": f"user-{number}", "role": "system", "message_id": f"end{number}", "type": "session.end"}
        for number in range(CONVERSATIONS)
    ]


async def _post_all(callers: list[Caller], entries: list[dict[str, str]]) -> list[Answer]:
    """They end together, however many of them one process has: a connection that idles for five seconds is closed."""
    left = iter(entries)

    async def work(caller: Caller) -> list[Answer]:
        return [await caller.post(entry) for entry in left]

    shares = await asyncio.gather(*map(work, callers))
    return [answer for share in shares for answer in share]


async def _archive(database_url: str) -> tuple[dict[str, asyncpg.Record], set[tuple[str, int, str]]]:
    """The sessions by id and the messages as (session, sequence, message id), once all sessions are there."""
    connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
    try:

        async def complete() -> bool:
            return bool(await connection.fetchval(_COUNT) >= CONVERSATIONS)

        await until(complete)
        sessions = await connection.fetch(_SESSIONS)
        messages = await connection.fetch(_MESSAGES)
        return {row["id"]: row for row in sessions}, {tuple(row) for row in messages}
    finally:
        await connection.close()


async def test_many_clients_two_apis_two_workers(redis_url: str, database_url: str) -> None:
    """20,000 messages, 2,000 conversations, 50 clients: one session each, no gap, no repeat, the archive as answered."""
    with system(redis_url=redis_url, database_url=database_url, api_workers=2, workers=2) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/bots", {"id": BOT, "name": "Busy"})
        callers = [await Caller.connect(httpx.URL(running.url), running.key) for _ in range(CLIENTS)]

        answers = await _post_all(callers, _entries())
        answers += await _post_all(callers, _ends())
        sessions, messages = await _archive(database_url)
        for caller in callers:
            caller.close()

    by_session = defaultdict(list)
    for answer in answers:
        by_session[answer.session_id].append(answer.sequence)
    assert len(answers) == len({answer.message_id for answer in answers}) == MESSAGES
    assert Counter(answer.session for answer in answers) == {"opened": CONVERSATIONS, "continued": MESSAGES - CONVERSATIONS}
    assert not any(answer.duplicate for answer in answers)
    assert len(by_session) == len(sessions) == CONVERSATIONS
    assert all(sorted(sequences) == list(range(1, len(sequences) + 1)) for sequences in by_session.values())
    assert len({row["conversation_id"] for row in sessions.values()}) == CONVERSATIONS
    assert {row["reason"] for row in sessions.values()} == {"ended"}
    assert {session: len(sequences) for session, sequences in by_session.items()} == {
        session: row["entries"] for session, row in sessions.items()
    }
    assert messages == {(answer.session_id, answer.sequence, answer.message_id) for answer in answers}
