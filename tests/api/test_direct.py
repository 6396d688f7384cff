"""The direct way of one entry answers byte for byte as the way through ASGI, to honest and to hostile requests."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.direct import DirectIngest, DirectRequest
from app.api.middleware import Ports
from app.resources import Resources
from app.supervisor.connection import Connection
from app.supervisor.serve import bind
from tests.api.conftest import Client, ClientMaker

# Only these differ between two answers to the same request: ids of sessions and requests, instants, and what is left of a rate.
VARIES = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d{4}-\d\d-\d\dT[\d:.]+Z|date: [^\r]+|gen-[0-9a-f]+|r=\d+;t=\d+|plain|quick"
)
LAST = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
ENTRY = b'{"user_id":"ann","role":"user","message_id":"m1","text":"hello"}'


def post(
    body: bytes = ENTRY, *more: bytes, path: bytes = b"/v1/bots/BOT/messages", version: bytes = b"1.1", key: bytes = b"KEY"
) -> bytes:
    """A request with a whole body; `more` are lines of its head, and one that begins with `content-length` replaces its own."""
    lines = [b"host: x", b"authorization: Bearer " + key, b"content-type: application/json", *more]
    if not any(line.lower().startswith((b"content-length", b"transfer-encoding")) for line in more):
        lines.append(b"content-length: %d" % len(body))
    return b"POST %b HTTP/%b\r\n%b\r\n\r\n%b" % (path, version, b"\r\n".join(lines), body)


HONEST = {
    "first": post(),
    "repeat": post(),
    "no id of its own": post(b'{"user_id":"ann","role":"bot"}'),
    "request id": post(ENTRY, b"X-Request-ID: mine-1"),
    "long": post(b'{"user_id":"ann","role":"user","text":"%b"}' % (b"x" * 9_000)),
    "all kinds": post(
        b'{"user_id":"ben","role":"customer","type":"message","channel":"WhatsApp","intent":"a","language":"en","tags":["vip"],'
        b'"sentiment":{"joy":1},"metadata":{"a":[1,2,{"b":null}]},"session_metadata":{"phone":"+1"},"sent_at":1790000000000}'
    ),
    "unicode": post('{"user_id":"zoë","role":"user","text":"ça \\u0007 😀"}'.encode()),
    "byte order mark": post(b"\xef\xbb\xbf" + ENTRY),
    "ends a session": post(b'{"user_id":"ann","role":"user","type":"session.end"}'),
    "late": post(b'{"user_id":"ann","role":"user","type":"resolved","message_id":"m2"}'),
    "no session": post(b'{"user_id":"cy","role":"user","type":"search"}'),
    "two at once": post() + post(b'{"user_id":"dan","role":"user"}'),
}
PLAIN_WAY = {
    "longer": post(b'{"user_id":"ann","role":"user","text":"%b"}' % (b"x" * 32_000)),
    "large state": post(b'{"user_id":"eve","role":"user","context":{"a":"%b"}}' % (b"x" * 70_000)),
    "charset": post(ENTRY, b"content-type: application/json; charset=utf-8"),
    "chunked": post(b"%x\r\n%b\r\n0\r\n\r\n" % (len(ENTRY), ENTRY), b"transfer-encoding: chunked"),
    "closes": post(ENTRY, b"connection: close"),
    "HTTP/1.0": post(version=b"1.0"),
    "expects": post(ENTRY, b"expect: 100-continue"),
    "batch": post(b"[" + ENTRY + b"]", path=b"/v1/bots/BOT/messages/batch"),
    "another key": post(key=b"adj_unknown"),
    "two keys": post(ENTRY, b"authorization: Bearer adj_other"),
    "another bot": post(path=b"/v1/bots/other/messages"),
    "escaped bot": post(path=b"/v1/bots/%42OT/messages"),
    "query": post(path=b"/v1/bots/BOT/messages?x=1"),
    "zipped": post(ENTRY, b"content-encoding: gzip"),
    "no JSON": post(ENTRY, b"content-type: text/plain"),
    "too long": post(b"x" * 100, b"content-length: 999999999"),
    "negative length": post(ENTRY, b"content-length: -1"),
    "two lengths": post(ENTRY, b"content-length: 1", b"content-length: %d" % len(ENTRY)),
    "upgrade": post(ENTRY, b"connection: upgrade", b"upgrade: websocket"),
}
HOSTILE = {
    "empty": post(b""),
    "no object": post(b"[]"),
    "cut off": post(ENTRY[:-3]),
    "many faults": post(b'{"user_id":"","role":"king","x":1,"text":5,"tags":"no"}'),
    "no user": post(b'{"role":"user"}'),
    "NUL": post(b'{"user_id":"ann","role":"user","text":"a\\u0000b"}'),
    "half a pair": post(b'{"user_id":"ann","role":"user","text":"\\ud800"}'),
    "no UTF-8": post(b'{"user_id":"ann","role":"user","text":"\xff"}'),
    "deep": post(b'{"user_id":"ann","role":"user","metadata":' + b"[" * 4_000 + b"]" * 4_000 + b"}"),
    "large number": post(b'{"user_id":"ann","role":"user","metadata":{"a":1e999}}'),
    "control in an id": post(b'{"user_id":"a\\u001fb","role":"user"}'),
    "bad request id": post(b"{}", b"x-request-id: a b\tc"),
}


@asynccontextmanager
async def served(app: FastAPI, protocol: type[HttpToolsProtocol]) -> AsyncIterator[int]:
    """The port of a server of the app by this protocol."""
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False)
    server, listener = uvicorn.Server(config), bind("127.0.0.1", 0)
    server.config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([listener])
    try:
        yield listener.getsockname()[1]
    finally:
        await server.shutdown([listener])
        listener.close()


async def answers(port: int, request: bytes, *, bot: str, key: str) -> bytes:
    """All that the server sends for a request and the last one of the connection, which it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace(b"BOT", bot.encode()).replace(b"KEY", key.encode()) + LAST)
    async with asyncio.timeout(20):
        answer = await reader.read(-1)
    writer.close()
    return VARIES.sub(b"?", answer)


@pytest.fixture
async def direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request that was offered to the direct way took it."""
    taken: list[bool] = []
    start = DirectIngest.start

    def noted(self: DirectIngest, request: DirectRequest) -> bool:
        taken.append(start(self, request))
        return taken[-1]

    monkeypatch.setattr(DirectIngest, "start", noted)
    return taken


@pytest.fixture
async def key(admin: Client) -> str:
    """The key of `admin`, for whom two bots exist."""
    for bot in ("plain", "quick"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
    return admin.headers["authorization"].removeprefix("Bearer ")


async def test_answers_are_the_same_byte_for_byte(app: FastAPI, key: str, direct: list[bool], resources: Resources) -> None:
    """Each request goes to a server by uvicorn's own protocol and to one by ours; all but some are offered the direct way."""
    async with served(app, HttpToolsProtocol) as plain, served(app, Connection) as quick:
        for name, request in {"warm-up": post(b'{"user_id":"w","role":"user"}'), **HONEST, **PLAIN_WAY, **HOSTILE}.items():
            before = len(direct)
            expected = await answers(plain, request, bot="plain", key=key)
            got = await answers(quick, request, bot="quick", key=key)

            assert got == expected, name
            assert got.startswith(b"HTTP/1.1 "), name
            assert (len(direct) > before) == (name in HONEST or name in HOSTILE), name
    assert all(direct)
    assert len(resources.admissions._known) > 0


async def test_request_in_pieces_is_answered_once_it_is_whole(app: FastAPI, key: str, direct: list[bool]) -> None:
    """Its bytes may come one by one, and other requests meanwhile."""
    async with served(app, Connection) as port:
        await answers(port, post(), bot="quick", key=key)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for byte in post(b'{"user_id":"ann","role":"user"}').replace(b"BOT", b"quick").replace(b"KEY", key.encode()):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()

    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert direct == [True]


@pytest.mark.usefixtures("key")
async def test_change_of_configuration_ends_the_direct_way(
    app: FastAPI, admin: Client, clients: ClientMaker, direct: list[bool]
) -> None:
    """A key that was admitted is looked at again, and refused once it is revoked."""
    other = (await clients("ingest")).headers["authorization"].removeprefix("Bearer ")
    listed = await admin.ok("GET", "/v1/keys")
    revoked = next(each["id"] for each in listed["keys"] if each["scopes"] == ["ingest"])
    async with served(app, Connection) as port:
        admitted = [await answers(port, post(), bot="quick", key=other) for _ in range(2)]
        await admin.ok("DELETE", f"/v1/keys/{revoked}")
        refused = await answers(port, post(), bot="quick", key=other)

    assert [answer[:15] for answer in admitted] == [b"HTTP/1.1 200 OK"] * 2
    assert direct == [True]
    assert refused.startswith(b"HTTP/1.1 401 ")


async def test_request_beyond_a_rate_is_refused(app: FastAPI, key: str, resources: Resources, direct: list[bool]) -> None:
    """Of a rate that this process has nothing of, Redis is asked by the way through ASGI."""
    async with served(app, Connection) as port:
        await answers(port, post(), bot="quick", key=key)
        for held in resources.limits._rates._slices.values():
            held.tokens, held.empty_until_ms = 0, float("inf")
        refused = await answers(port, post(), bot="quick", key=key)

    assert refused.startswith(b"HTTP/1.1 429 ")
    assert direct == [False]


async def test_the_port_of_operators_takes_no_entry(app: FastAPI, admin: Client) -> None:
    """Also one that was admitted on the other port."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    key = admin.headers["authorization"].removeprefix("Bearer ")
    async with served(app, Connection) as port:
        before = [await answers(port, post(), bot="shop", key=key) for _ in range(2)]
        app.state.ports, app.state.direct.operations_port = Ports(port), port
        after = await answers(port, post(), bot="shop", key=key)

    assert [answer[:12] for answer in before] == [b"HTTP/1.1 200"] * 2
    assert after.startswith(b"HTTP/1.1 404")
