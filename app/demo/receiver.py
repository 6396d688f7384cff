"""The demo's webhook receiver: a real HTTP server on loopback that verifies every signature."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import msgspec
from msgspec import Struct
from standardwebhooks import Webhook, WebhookVerificationError

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
