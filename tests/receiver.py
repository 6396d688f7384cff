"""A webhook receiver for tests: a real HTTP server on loopback, in a thread of its own, that behaves as badly as a test wants.

    with Receiver() as receiver:
        receiver.behave("/slow", drip())
        …  # send something to receiver.url("/slow")
        await receiver.until(1, path="/slow")
        receiver.requests[0].verify(secret)

A behaviour is called with each request that its path gets, and writes what it likes to the socket; a path without one answers
200. It is raw asyncio, since no HTTP library will send bad HTTP.
"""

import asyncio
import gzip
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Self

import msgspec
from standardwebhooks import Webhook

CERTIFICATE = Path(__file__).parent / "delivery" / "self_signed.pem"
CERTIFICATE_NAME = "hooks.test"
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Received:
    """One request as it came in. `number` counts those of its path, from 1."""

    path: str
    headers: dict[str, str]
    body: bytes
    number: int
    order: int

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        decoded: dict[str, Any] = msgspec.json.decode(self.body)
        return decoded

    @property
    def type(self) -> str:
        return str(self.event["type"])

    def verify(self, secret: str) -> dict[str, Any]:
        """Verify it as a receiver would, with the library and the real time; gives the event, raises if it is not genuine."""
        verified: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return verified

    def is_signed_with(self, secret: str) -> bool:
        """Whether one of its signatures is of this secret, at any time: for tests that move clocks."""
        at = datetime.fromtimestamp(int(self.headers["webhook-timestamp"]), UTC)
        signature = Webhook(secret).sign(self.id, at, self.body.decode())
        return signature in self.headers["webhook-signature"].split(" ")


@dataclass(frozen=True)
class Exchange:
    """A request and the socket to answer it on."""

    request: Received
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Behaviour = Callable[[Exchange], Awaitable[None]]


def reply(status: int = 200, body: bytes = b"ok", **headers: str) -> Behaviour:
    """Answer like a sane server; header names are given with underscores for hyphens."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(head(status, content_length=str(len(body)), **headers) + body)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The first request gets the first behaviour, and so on; the last one stays."""

    async def behave(exchange: Exchange) -> None:
        await behaviours[min(exchange.request.number, len(behaviours)) - 1](exchange)

    return behave


def fails(times: int, *, status: int = 500) -> Behaviour:
    """Fail that often, then answer 200."""
    return in_turn(*[reply(status, b"not now")] * times, reply())


def silence() -> Behaviour:
    """Take the request and never answer; the connection stays open."""

    async def behave(exchange: Exchange) -> None:
        del exchange
        await asyncio.Event().wait()

    return behave


def drip(*, interval_s: float = 0.02, status: int = 200) -> Behaviour:
    """Answer one byte at a time, for ever: every single read succeeds, the whole never ends."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(head(status, transfer_encoding="chunked"))
        while True:
            await exchange.send(b"1\r\n.\r\n")
            await asyncio.sleep(interval_s)

    return behave


def drip_headers(*, interval_s: float = 0.02) -> Behaviour:
    """As `drip`, but the headers never end."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await exchange.send(b"x-a: b\r\n")
            await asyncio.sleep(interval_s)

    return behave


def flood(size: int = 1024 * MEGABYTE, *, status: int = 200) -> Behaviour:
    """Answer with a reply of that many bytes, as fast as they are taken; 1 GB by default."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(head(status, content_length=str(size)))
        chunk = bytes(64 * 1024)
        for _ in range(size // len(chunk)):
            await exchange.send(chunk)

    return behave


def gzip_bomb(unpacked: int = 64 * MEGABYTE) -> Behaviour:
    """Answer with a few KB that unpack to many MB."""
    bomb = gzip.compress(bytes(unpacked))
    return reply(200, bomb, content_encoding="gzip")


def redirect(to: str, *, status: int = 307) -> Behaviour:
    return reply(status, b"elsewhere", location=to)


def gone() -> Behaviour:
    return reply(410, b"no more")


def busy(retry_after: str, *, status: int = 503) -> Behaviour:
    """Ask to be left alone: seconds or an HTTP date."""
    return reply(status, b"busy", retry_after=retry_after)


def close_mid_reply(*, status: int = 200) -> Behaviour:
    """Promise 100 bytes, send 10, hang up."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(head(status, content_length="100") + b"0123456789")
        exchange.writer.close()

    return behave


def hang_up() -> Behaviour:
    """Take the request and close without a word."""

    async def behave(exchange: Exchange) -> None:
        exchange.writer.close()

    return behave


def bad_http() -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.send(b"220 smtp.example.com ESMTP ready\r\n\r\n")
        exchange.writer.close()

    return behave


def held(release: Event) -> Behaviour:
    """Answer 200 once the test says so: what is in flight until then is in flight for certain."""

    async def behave(exchange: Exchange) -> None:
        await asyncio.get_running_loop().run_in_executor(None, release.wait, 30)
        await reply()(exchange)

    return behave


def head(status: int, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Receiver:
    """The server. `tls` gives it a self-signed certificate; `port` 0 takes a free one."""

    tls: bool = False
    port: int = 0
    host: str = "127.0.0.1"
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    dropped: int = 0

    def __post_init__(self) -> None:
        self._behaviours: dict[str, Behaviour] = {}
        self._counts: dict[str, int] = {}
        self._lock = Lock()
        self._started = Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._socket = socket.create_server((self.host, self.port))
        self.port = self._socket.getsockname()[1]
        self._thread = Thread(target=self._run, name="receiver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def url(self, path: str = "/hook", *, host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    def behave(self, path: str, behaviour: Behaviour) -> str:
        """From now on, answer this path so; gives its URL."""
        self._behaviours[path] = behaviour
        return self.url(path)

    def at(self, path: str) -> list[Received]:
        """The requests of a path so far, in order."""
        with self._lock:
            return [request for request in self.requests if request.path == path]

    async def until(self, count: int, *, path: str | None = None, within_s: float = 20) -> Sequence[Received]:
        """Wait until that many requests came, of one path or of all; fails if they do not come in time."""
        give_up = time.monotonic() + within_s
        while len(got := self.requests if path is None else self.at(path)) < count:
            assert time.monotonic() < give_up, f"{len(got)} requests instead of {count} within {within_s} s"
            await asyncio.sleep(0.005)
        return got

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, sock=self._socket, ssl=_certificate() if self.tls else None)
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()  # a task that was cancelled before its first step has closed nothing
        await asyncio.sleep(0)  # an aborted transport is closed in the next iteration of the loop

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                request = await self._read(reader)
                await self._behaviours.get(request.path, reply())(Exchange(request, writer))
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            self.dropped += 1
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _read(self, reader: asyncio.StreamReader) -> Received:
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return self._keep(start.split(" ")[1], headers, body)

    def _keep(self, path: str, headers: dict[str, str], body: bytes) -> Received:
        with self._lock:
            number = self._counts[path] = self._counts.get(path, 0) + 1
            request = Received(path, headers, body, number, len(self.requests))
            self.requests.append(request)
            return request


def _certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context
