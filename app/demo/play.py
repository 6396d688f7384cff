"""Plays the day through the API: makes a bot and its endpoint, posts entries, closes sessions; then reads the result.

The webhook receiver is a real HTTP server on loopback that verifies every signature.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import httpx
import msgspec
from msgspec import Struct
from standardwebhooks import Webhook, WebhookVerificationError

from app.demo.day import POLICY, Day, ScriptItem
from app.domain.instants import rfc3339
from app.replay import BATCH_ENTRIES, EntryLine, Poster

_OK = b"HTTP/1.1 204 No Content\r\n\r\n"
_FORGED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"


class ReceivedWebhook(Struct, frozen=True):
    """A webhook with a valid signature."""

    id: str
    type: str
    data: dict[str, Any]

    @property
    def session_id(self) -> str:
        return str(self.data["session"]["id"])


class Receiver:
    """Stores webhooks in the order of arrival. `secret` is set once the endpoint is made."""

    def __init__(self) -> None:
        self.secret = ""
        self.received: list[ReceivedWebhook] = []
        self.forged = 0
        self.url = ""
        self._news = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def listening(cls) -> AsyncIterator[Self]:
        """A receiver on a free port, until the end of the block."""
        receiver = cls()
        server = await asyncio.start_server(receiver._converse, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        receiver.url = f"http://{host}:{port}/webhooks"
        async with server:
            yield receiver

    def of(self, kind: str) -> list[ReceivedWebhook]:
        """The webhooks of one type, each id once, since webhooks may be delivered more than once."""
        return list({item.id: item for item in self.received if item.type == kind}.values())

    async def until(self, kind: str, count: int, *, within_s: float) -> None:
        """Wait for that many of one type, at most `within_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while len(self.of(kind)) < count:
                    self._news.clear()
                    await self._news.wait()

    def late_closure_messages(self) -> int:
        """The number of closure messages that arrived after `session.closed` of their session."""
        ended: set[str] = set()
        late: set[str] = set()
        for item in self.received:
            if item.type == "session.closed":
                ended.add(item.session_id)
            elif item.type == "session.closure_message" and item.session_id in ended:
                late.add(item.session_id)
        return len(late)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                writer.write(_OK if start.startswith("POST ") and self._take(headers, body) else _FORGED)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _take(self, headers: dict[str, str], body: bytes) -> bool:
        try:
            Webhook(self.secret).verify(body, headers)
        except WebhookVerificationError:
            self.forged += 1
            return False
        event = msgspec.json.decode(body)
        self.received.append(ReceivedWebhook(headers["webhook-id"], event["type"], event["data"]))
        self._news.set()
        return True


BOT = "demo"
_PATIENCE_S = 30.0

JsonDict = dict[str, Any]


class DemoFailed(Exception):
    """The API refused a request of the demo; the message says which."""


class Played(Struct, frozen=True):
    """The API's answers to the entries, and the sessions that it lists afterwards."""

    taken: int
    refused: int
    opened: int
    sessions: list[JsonDict]
    page: list[JsonDict]


async def play(api: httpx.AsyncClient, day: Day, receiver: Receiver, *, on_progress: Callable[[int], None]) -> Played:
    """Play the whole day; `on_progress` gets the number of items so far. Raises `DemoFailed`."""
    await _set_up(api, receiver)
    player = _Player(api)
    for done, item in enumerate(day.items, start=1):
        await player.take(item)
        on_progress(done)
    await player.flush()
    advance = {"to": rfc3339(day.over_at_ms)}
    await ask(api, "POST", f"/v1/bots/{BOT}/clock/advance", json=advance)
    await receiver.until("session.closed", day.expected.reasons.total(), within_s=_PATIENCE_S)
    sessions = [session async for session in _pages(api, {"bot": BOT, "limit": "200"})]
    page = await ask(api, "GET", "/v1/sessions", params={"bot": BOT, "limit": "8"})
    return Played(player.taken, player.refused, player.opened, sessions, page["sessions"])


async def _set_up(api: httpx.AsyncClient, receiver: Receiver) -> None:
    bot = {"id": BOT, "name": "Demo", "sandbox": True, "clock_mode": "sent_at", "policy": POLICY}
    await ask(api, "POST", "/v1/bots", json=bot)
    events = ["session.closure_message", "session.closed"]
    endpoint = await ask(api, "POST", f"/v1/bots/{BOT}/endpoints", json={"url": receiver.url, "events": events})
    receiver.secret = endpoint["secret"]


class _Player:
    """Posts entries in batches; before a close by the API, the entries before it are posted."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._poster = Poster(api, bot=BOT)
        self._batch: list[tuple[str, EntryLine]] = []
        self._session_of: dict[str, str] = {}
        self.taken = 0
        self.refused = 0
        self.opened = 0

    async def take(self, item: ScriptItem) -> None:
        if item.entry is None:
            await self.flush()
            await ask(self._api, "POST", f"/v1/sessions/{self._session_of[item.user]}/close")
            return
        self._batch.append((item.user, EntryLine(len(self._batch), msgspec.json.encode(item.entry), item.at_ms)))
        if len(self._batch) == BATCH_ENTRIES:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        answers = await self._poster.post([line for _, line in batch])
        for (user, _), answer in zip(batch, answers, strict=True):
            self.refused += answer.error is not None
            self.taken += answer.error is None
            self.opened += answer.session == "opened"
            if answer.session_id is not None:
                self._session_of[user] = answer.session_id


async def _pages(api: httpx.AsyncClient, parameters: dict[str, str]) -> AsyncIterator[JsonDict]:
    while True:
        page = await ask(api, "GET", "/v1/sessions", params=parameters)
        for session in page["sessions"]:
            yield session
        if page["next"] is None:
            return
        parameters = parameters | {"cursor": page["next"]}


async def ask(
    api: httpx.AsyncClient,
    method: str,
    path: str,
    *,
    json: JsonDict | None = None,
    params: dict[str, str] | None = None,
) -> JsonDict:
    """The answer of the API. Raises `DemoFailed` if it is a refusal."""
    reply = await api.request(method, path, json=json, params=params)
    if not reply.is_success:
        raise DemoFailed(f"{method} {path}: {reply.status_code} {reply.text}")
    answer: JsonDict = reply.json()
    return answer
