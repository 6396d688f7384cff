"""An API process drains before it ends: it fails readiness first, refuses no connection, and answers requests in flight."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from app.settings import Settings
from app.supervisor.api import ApiServer, server_config
from app.supervisor.connection import LONGEST_HEAD, Connection, ConnectionLimits
from app.supervisor.serve import bind, url_of

LONG = 50_000_000  # more than the sockets of both sides hold


class Served:
    """A server of a small app on a free port. `/slow` answers when `release` is set."""

    def __init__(self, *, drain_delay_s: float, settings: Settings | None) -> None:
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.listener = bind("127.0.0.1", 0)
        self.url = url_of(self.listener)
        self.ready, announcement = os.pipe()
        app = FastAPI()
        app.add_api_route("/slow", self._slow)
        app.add_api_route("/quick", self._quick)
        app.add_api_route("/length", self._length, methods=["POST"])
        app.add_api_route("/long", self._long)
        app.add_api_route("/readyz", self._quick)
        app.add_api_route("/peer", self._peer)
        if settings is None:
            config = uvicorn.Config(app, http=Connection, ws="none", log_config=None, timeout_graceful_shutdown=5)
        else:
            config = server_config(app, settings)
        self.server = ApiServer(config, app=app, drain_delay_s=drain_delay_s, ready=announcement)

    def ask_to_stop(self) -> None:
        self.server.handle_exit(signal.SIGTERM, None)

    async def _slow(self) -> str:
        self.began.set()
        await self.release.wait()
        return "finished"

    async def _quick(self, request: Request) -> dict[str, bool]:
        return {"draining": request.app.state.draining}

    async def _peer(self, request: Request) -> list[str | None]:
        return [request.url.scheme, request.client and request.client.host]

    async def _long(self) -> Response:
        return Response(b"x" * LONG)

    async def _length(self, request: Request) -> int:
        return len(await request.body())


@asynccontextmanager
async def _served(
    *, drain_delay_s: float = 0.0, settings: Settings | None = None
) -> AsyncIterator[tuple[Served, asyncio.Task[None]]]:
    served = Served(drain_delay_s=drain_delay_s, settings=settings)
    task = asyncio.create_task(served.server.serve(sockets=[served.listener]))
    await _until(lambda: served.server.started)
    try:
        yield served, task
    finally:
        served.release.set()
        served.ask_to_stop()
        with suppress(asyncio.CancelledError):
            await task
        os.close(served.ready)


async def _until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.01)


async def test_it_says_when_it_works() -> None:
    """A byte comes through the pipe once requests are answered."""
    async with _served() as (served, _):
        assert os.read(served.ready, 1) == b"1"


async def test_a_request_in_flight_is_answered() -> None:
    """A stop waits for it, and its connection is closed with the answer."""
    async with _served() as (served, task), httpx.AsyncClient(base_url=served.url) as client:
        request = asyncio.create_task(client.get("/slow"))
        await served.began.wait()
        served.ask_to_stop()
        await _until(lambda: served.server.should_exit)
        served.release.set()
        answer = await request
        await task

    assert (answer.status_code, answer.json(), answer.headers["connection"]) == (200, "finished", "close")


async def test_it_says_no_before_it_stops_listening() -> None:
    """Within the drain delay new requests are still answered, and the app knows that it is draining."""
    async with _served(drain_delay_s=0.5) as (served, task):
        served.ask_to_stop()
        async with httpx.AsyncClient(base_url=served.url) as client:
            answer = await client.get("/quick")
        await task

    assert (answer.json(), answer.headers["connection"]) == ({"draining": True}, "close")


async def test_connections_are_refused_at_once_after_the_stop() -> None:
    """No connection waits in a backlog that is not served any more."""
    async with _served() as (served, task):
        host, port = served.listener.getsockname()
        served.ask_to_stop()
        await task

        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, port), timeout=10)


async def test_an_idle_connection_does_not_hold_up_the_stop() -> None:
    """A client that keeps its connection open and is silent loses it after a moment."""
    async with _served() as (served, task), httpx.AsyncClient(base_url=served.url) as client:
        await client.get("/quick")
        served.ask_to_stop()
        async with asyncio.timeout(30):
            await task


async def test_asking_twice_changes_nothing() -> None:
    """Impatience is no reason to drop what is in flight."""
    async with _served() as (served, task), httpx.AsyncClient(base_url=served.url) as client:
        request = asyncio.create_task(client.get("/slow"))
        await served.began.wait()
        for _ in range(3):
            served.ask_to_stop()
        await _until(lambda: served.server.should_exit)
        served.release.set()

        assert (await request).json() == "finished"
        await task


async def _said(served: Served, *parts: bytes) -> bytes:
    """All that comes back on one connection until the server closes it."""
    reader, writer = await asyncio.open_connection(*served.listener.getsockname())
    try:
        async with asyncio.timeout(60):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


HEAD = b"POST /length HTTP/1.1\r\nhost: x\r\n"


async def test_a_head_without_end_is_refused() -> None:
    """Before its bytes fill the memory: many headers, one long one, a long address, or one that never comes to its end."""
    async with _served() as (served, _):
        for head in (
            HEAD + b"x: y\r\n" * (LONGEST_HEAD // 6),
            HEAD + b"x: " + b"y" * LONGEST_HEAD,
            b"GET /" + b"y" * LONGEST_HEAD,
        ):
            assert (await _said(served, head)).startswith(b"HTTP/1.1 431 ")


async def test_a_long_body_is_no_long_head() -> None:
    """Nor are many requests on one connection."""
    request = HEAD + b"x: " + b"y" * 1_000 + b"\r\ncontent-length: 400000\r\n\r\n" + b"z" * 400_000
    async with _served() as (served, _):
        said = await _said(served, *[request] * 80, b"GET /quick HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    assert said.count(b"HTTP/1.1 200 OK") == 81
    assert said.count(b"400000") == 80


@pytest.mark.parametrize("begun", (b"", b"POST /len", HEAD + b"content-length: 9\r\n\r\nabc"))
async def test_a_request_that_does_not_arrive_is_ended(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed with a reason; requests that have arrived may take their time."""
    monkeypatch.setattr(Connection, "limits", ConnectionLimits(head_s=0.2, body_s=0.2))
    async with _served() as (served, _), httpx.AsyncClient(base_url=served.url) as client:
        patient = asyncio.create_task(client.get("/slow"))
        await served.began.wait()
        said = await _said(served, begun)
        served.release.set()

        assert said.startswith(b"HTTP/1.1 408 ")
        assert (await patient).json() == "finished"


async def _connected(served: Served, request: bytes = b"") -> socket.socket:
    client = socket.create_connection(served.listener.getsockname())
    client.settimeout(0)
    await asyncio.get_running_loop().sock_sendall(client, request)
    return client


@pytest.mark.parametrize("half_closed", (False, True))
async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch, *, half_closed: bool) -> None:
    """The reply that waits for it is dropped with its connection, also where the client has closed its own direction."""
    monkeypatch.setattr(Connection, "limits", ConnectionLimits(reply_s=0.2))
    async with _served() as (served, _):
        connections = served.server.server_state.connections
        client = await _connected(served, b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n")
        await _until(lambda: len(connections) == 1)
        if half_closed:
            client.shutdown(socket.SHUT_WR)
        await _until(lambda: not connections)
        client.close()


async def test_a_client_that_reads_slowly_gets_its_whole_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is of a standstill, not of the whole reply."""
    monkeypatch.setattr(Connection, "limits", ConnectionLimits(reply_s=1.5))
    async with _served() as (served, _):
        client = await _connected(served, b"GET /long HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        size, loop = 0, asyncio.get_running_loop()
        while part := await loop.sock_recv(client, 1 << 20):
            size += len(part)
            await asyncio.sleep(0.05)
        client.close()

    assert size > LONG


async def test_a_new_connection_takes_the_place_of_the_one_that_waits_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clients hold a connection without a request, the next one is answered."""
    monkeypatch.setattr(Connection, "limits", ConnectionLimits(connections=5))
    async with _served() as (served, _), httpx.AsyncClient(base_url=served.url) as client:
        silent = [await _connected(served, b"GET /qu") for _ in range(20)]
        answer = await client.get("/quick")

        assert answer.status_code == 200
        assert len(served.server.server_state.connections) <= 5
    for each in silent:
        each.close()


async def test_probes_are_answered_where_every_connection_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request in flight is cut off for a new one: that one is refused, unless it is a probe."""
    monkeypatch.setattr(Connection, "limits", ConnectionLimits(connections=2))
    async with _served() as (served, _), httpx.AsyncClient(base_url=served.url) as client:
        at_work = [asyncio.create_task(client.get("/slow")) for _ in range(2)]
        await _until(lambda: len(served.server.server_state.tasks) == 2)
        probe, refused = await client.get("/readyz"), await client.get("/quick")
        served.release.set()

        assert (probe.status_code, refused.status_code) == (200, 503)
        assert [answer.json() for answer in await asyncio.gather(*at_work)] == ["finished"] * 2


async def test_addresses_are_those_that_a_trusted_proxy_names() -> None:
    """Of any other peer the header is what a caller wrote: it counts for nothing."""
    named = {"x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https"}
    peers = {}
    for trusted in ("127.0.0.0/8", "10.0.0.0/8", ""):
        async with _served(settings=Settings(trusted_proxies=trusted)) as (served, _), httpx.AsyncClient() as client:
            peers[trusted] = (await client.get(f"{served.url}/peer", headers=named)).json()

    assert peers == {"127.0.0.0/8": ["https", "203.0.113.9"], "10.0.0.0/8": ["http", "127.0.0.1"], "": ["http", "127.0.0.1"]}


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine, and its key."""
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*made.split(), *names], check=True, capture_output=True)
    return paths


async def test_tls_by_settings(certificate: tuple[Path, Path]) -> None:
    """With a certificate and its key, the API answers by https alone."""
    settings = Settings(tls_cert_file=certificate[0], tls_key_file=certificate[1])
    tls = ssl.create_default_context(cafile=str(certificate[0]))
    async with _served(settings=settings) as (served, _), httpx.AsyncClient(verify=tls) as client:
        url = url_of(served.listener, tls=True)

        assert (await client.get(f"{url}/peer")).json()[0] == "https"
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{served.url}/peer")
