"""One client's connection: uvicorn's protocol with the limits that it lacks.

A client without a key could otherwise hold memory and connections for as long as it likes: a request's head has a maximum size,
and head, body and the reading of the reply have deadlines. Where a process has as many connections as it may, a new one takes
the place of the one whose client has kept it waiting longest; if none waits for its client, only probes are answered.

A plain request with one entry, admitted before, takes the direct way (`app.api.direct`): it is handed over when it is whole, and
its answer is written at once. To uvicorn it looks like a request of its own. All others take uvicorn's way through ASGI.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import structlog
from msgspec import Struct
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.direct import DirectIngest, DirectReply, DirectRequest
from app.api.middleware import PROBES
from app.ingest.limits import Admission

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

LONGEST_HEAD = 32_768
_PROBES = frozenset(path.encode() for path in PROBES)
_ROOM_FOR_PROBES = 64
_READ_IN_TIME = 65_536  # bytes
_LONGEST_DIRECT = 4  # digits of a body's length: so little that a key's share of all bodies need not be counted
_JSON = b"application/json"
log = structlog.get_logger(__name__)


class ConnectionLimits(Struct, frozen=True):
    """Bounds of a client's time and connections."""

    head_s: float = 10.0  # from the first byte of a request, or from the connect, to the end of its head
    body_s: float = 30.0  # from there to the end of the body
    reply_s: float = 30.0  # in which 64 KB of a reply that waits are read, and in which a connection that closes ends
    connections: int = 2_000  # of one process


class Connection(HttpToolsProtocol):
    """Answers 431 to a head that is too long and 408 to a request that does not arrive; cuts off a client that does not read."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *args: Any, **more: Any) -> None:  # noqa: ANN401 - uvicorn's own parameters
        super().__init__(*args, **more)
        self._head_bytes = 0
        self._in_body = False
        self._only_probes = False
        self._running: RequestResponseCycle | None = None
        # Since when the connection waits for its client: for a request, for the reading of a reply, for the next request.
        self._expected_since_s: float | None = None
        self._unread_since_s: float | None = None
        self._unread_bytes = 0
        self._idle_since_s: float | None = None
        self._arriving: ArrivingRequest | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn itself does
        crowded = len(self.connections) - self.limits.connections
        if crowded >= 0 and not self._take_the_place_of_another():
            self._only_probes = True
        super().connection_made(transport)
        self._expected_since_s = self.loop.time()
        if crowded >= _ROOM_FOR_PROBES and self._only_probes:
            self.cut_off()

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
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._expected_since_s, self._idle_since_s = self.loop.time(), None

    @override
    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_body = 0, True
        if self._only_probes and self.url.partition(b"?")[0] not in _PROBES:
            self._refuse(b"503 Service Unavailable", "this process has as many connections as it may; retry")
            return
        self._expected_since_s = self.loop.time()
        self._arriving = self._plain_request()
        if self._arriving is None:
            self._begin_asgi()

    @override
    def on_body(self, body: bytes) -> None:
        if self._arriving is not None:
            self._arriving.body += body
        elif not self.transport.is_closing():
            super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_body, self._expected_since_s = False, None
        request, self._arriving = self._arriving, None
        if self.transport.is_closing():
            return
        if request is not None:
            before, self.cycle = self.cycle, request  # type: ignore[assignment]  # it has what uvicorn uses of a cycle
            if request.start():
                return
            self.cycle = before
            self._begin_asgi()
            super().on_body(request.body)
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        another_waits = bool(self.pipeline)
        super().on_response_complete()
        self._idle_since_s = None if another_waits else self.loop.time()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_to_wait_for_reading()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since_s, self._unread_bytes = None, 0

    def write_reply(self, request: ArrivingRequest, reply: DirectReply) -> None:
        """Write the answer of a request on the direct way, and go on with the request that follows it."""
        if request.disconnected or self.transport.is_closing():
            return
        head, closes = _default_head(tuple(self.server_state.default_headers))
        close = b"" if closes or request.keep_alive else b"connection: close\r\n"
        self.transport.write(b"".join((STATUS_LINE[reply.status], head, reply.head, close, b"\r\n", reply.body)))
        if closes or not request.keep_alive:
            self.transport.close()
        self.server_state.total_requests += 1
        if self.pipeline and not self.transport.is_closing():
            self.flow.resume_reading()
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since_s = self.loop.time()

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle  # `cycle` of uvicorn is the one that arrived last
        super()._start_asgi_task(cycle, app)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._drop_answers()
        super().connection_lost(exc)

    @override
    def eof_received(self) -> None:
        super().eof_received()
        self._drop_answers()  # the transport closes itself now

    def waiting_s(self, now_s: float) -> float:
        """How long the connection has waited for its client; 0 while the client waits for a reply."""
        since = (self._unread_since_s, self._expected_since_s, self._idle_since_s)
        return max((now_s - at_s for at_s in since if at_s is not None), default=0.0)

    def end_if_slow(self) -> None:
        """Called every second: end the connection if its client has let a deadline pass."""
        now_s, limits = self.loop.time(), self.limits
        if self._unread_bytes - self._unread() >= _READ_IN_TIME or (self._unread_since_s is None and self.transport.is_closing()):
            self._begin_to_wait_for_reading()
        allowed_s = limits.body_s if self._in_body else limits.head_s
        if _passed(self._unread_since_s, now_s, limits.reply_s):
            self.cut_off()
        elif _passed(self._expected_since_s, now_s, allowed_s):
            self._refuse(b"408 Request Timeout", f"the request did not arrive within {allowed_s:g} s")
        elif _passed(self._idle_since_s, now_s, self.timeout_keep_alive):
            self.timeout_keep_alive_handler()

    def _plain_request(self) -> ArrivingRequest | None:
        """The request on the direct way; None if it must go through ASGI."""
        direct: DirectIngest | None = getattr(getattr(self.config.app, "state", None), "direct", None)
        cycle = getattr(self, "cycle", None)
        busy = cycle is not None and not cycle.response_complete
        if direct is None or busy or self.flow.write_paused or self.expect_100_continue:
            return None
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        parser = self.parser
        if (
            len(headers) < len(self.headers)
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            or not (length.isdigit() and len(length) <= _LONGEST_DIRECT and int(length) <= direct.max_body_bytes)
            or headers.get(b"content-type", _JSON) != _JSON
            or b"content-encoding" in headers
            or (self.server or ("", None))[1] == direct.operations_port is not None
        ):
            return None
        admission = direct.admission(headers.get(b"authorization", b""), self.url)
        return None if admission is None else ArrivingRequest(self, direct, admission)

    def _begin_asgi(self) -> None:
        """Let uvicorn begin with the request whose head has arrived."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def cut_off(self) -> None:
        """End the connection at once; what was not sent yet is dropped."""
        self._drop_answers()
        self.transport.abort()

    def _drop_answers(self) -> None:
        """Requests in flight or in the pipeline find their client disconnected, and write nothing to a closed transport."""
        for cycle in (self._running, self.cycle, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()

    def _begin_to_wait_for_reading(self) -> None:
        self._unread_since_s, self._unread_bytes = self.loop.time(), self._unread()

    def _unread(self) -> int:
        """Bytes of replies that wait for the client."""
        try:
            return self.transport.get_write_buffer_size()
        except RuntimeError:  # uvloop's, between the end of a connection and the call of `connection_lost`
            return 0

    def _take_the_place_of_another(self) -> bool:
        """Cut off the connection that has waited longest for its client, if any waits."""
        now_s = self.loop.time()
        others = (other for other in self.connections if isinstance(other, Connection))
        longest = max(others, key=lambda other: other.waiting_s(now_s), default=None)
        if longest is None or longest.waiting_s(now_s) <= 0:
            return False
        self.connections.discard(longest)  # it ends in a later round of the loop, and more may connect in this one
        longest.cut_off()
        return True

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


class ArrivingRequest(DirectRequest):
    """A request on the direct way, with the fields that uvicorn expects of the one under way."""

    __slots__ = ("connection", "direct", "disconnected", "keep_alive", "message_event", "response_complete", "response_started")

    def __init__(self, connection: Connection, direct: DirectIngest, admission: Admission) -> None:
        super().__init__(admission, connection.url, connection.headers)
        self.connection = connection
        self.direct = direct
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = True
        self.message_event = _IGNORED

    def start(self) -> bool:
        """Whether it is on its way, or answered; False if it must go through ASGI."""
        return self.direct.start(self)

    @override
    def reply(self, reply: DirectReply) -> None:
        self.response_started = self.response_complete = True
        try:
            self.connection.write_reply(self, reply)
        except Exception:
            # The ledger calls this for one command among others, which an error must not reach.
            log.exception("answer not written")
            self.connection.transport.abort()


class _IgnoredEvent:
    """In the place of the event by which uvicorn wakes a request that waits for its body."""

    def set(self) -> None:
        pass


_IGNORED = _IgnoredEvent()


@lru_cache(maxsize=1)
def _default_head(lines: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, bool]:
    """The lines that uvicorn puts at the head of every answer, new once a second, as bytes; whether they close the connection."""
    return b"".join([b"%b: %b\r\n" % line for line in lines]), (b"connection", b"close") in lines


def connection_within(limits: ConnectionLimits) -> type[Connection]:
    """The protocol with these limits, for uvicorn, which makes an object of the class for each connection."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


def _passed(since_s: float | None, now_s: float, allowed_s: float) -> bool:
    return since_s is not None and now_s - since_s > allowed_s
