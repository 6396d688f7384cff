"""One client's connection: uvicorn's protocol with two limits that it lacks.

A request's head has a maximum size, and a request a maximum time to arrive. Without these limits a client without a key could
hold memory and connections for as long as it likes. A reply that is being sent has no limit here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LONGEST_HEAD = 65_536
SLOWEST_S = 30.0


class Connection(HttpToolsProtocol):
    """Answers 431 to a head that is too long, and 408 to a request that takes too long to arrive."""

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401 - uvicorn's own parameters
        super().__init__(*args, **more)
        self._head_bytes = 0
        self._in_body = False
        self._expected_since_s: float | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself does
        super().connection_made(transport)
        self._expected_since_s = self.loop.time()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Bytes that arrive in the same read as the end of a head are not counted.
        if not self._in_body and self._expected_since_s is not None:
            self._head_bytes += len(data)
            if self._head_bytes > LONGEST_HEAD:
                self._refuse(b"431 Request Header Fields Too Large", f"the request's head is over {LONGEST_HEAD} bytes")

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expected_since_s = self.loop.time()

    @override
    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_body = 0, True
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        self._in_body, self._expected_since_s = False, None
        super().on_message_complete()

    def end_if_slow(self) -> None:
        """Called every second: end the connection if its request takes too long to arrive."""
        if self._expected_since_s is not None and self.loop.time() - self._expected_since_s > SLOWEST_S:
            self._refuse(b"408 Request Timeout", f"the request did not arrive within {SLOWEST_S:.0f} s")

    def _refuse(self, status: bytes, why: str) -> None:
        """Close, with a status and a reason unless a reply has already begun."""
        if self.transport.is_closing():
            return
        cycle = getattr(self, "cycle", None)
        if cycle is None or cycle.response_complete or not cycle.response_started:
            text = why.encode()
            head = b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(head % (status, len(text)) + text)
        self._expected_since_s = None
        self.transport.close()
