"""A connection that breaks on demand: a proxy between the product and a server, driven by the test.

async with proxy(redis.socket_path) as wire:
    … connect to wire.port …
    wire.cut_after(b"EVALSHA")   # the next request with these bytes is executed, its reply is lost, the wire is cut
    wire.mode = Mode.MUTE        # requests are executed, replies are swallowed, nothing is cut
    wire.mode = Mode.DEAD        # half-open: requests are dropped, the connection stays open
    wire.mode = Mode.REFUSE      # new connections are refused
    wire.latency_s = 0.3         # each reply is delayed
    wire.cut()                   # all connections end at once
    wire.mode = Mode.PASS
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path


class Mode(Enum):
    PASS = auto()
    MUTE = auto()
    DEAD = auto()
    REFUSE = auto()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """Any number of connections of one wire. `cuts` counts those that were ended after a request that was executed."""

    def __init__(self, upstream: Path) -> None:
        self.mode = Mode.PASS
        self.latency_s = 0.0
        self.cuts = 0
        self.port = 0
        self._upstream = upstream
        self._cut_after: bytes | None = None
        self._connections: set[Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()

    def cut_after(self, request: bytes) -> None:
        self._cut_after = request

    def cut(self) -> None:
        for connection in list(self._connections):
            connection.end()

    def is_last(self, data: bytes) -> bool:
        """Whether this request is the one after whose execution the wire is to be cut; true for one request only."""
        if self._cut_after is None or self._cut_after not in data:
            return False
        self._cut_after = None
        return True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            if self.mode is not Mode.REFUSE:
                await self._connect((reader, writer))
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    async def _connect(self, client: Streams) -> None:
        try:
            server = await asyncio.open_unix_connection(str(self._upstream))
        except OSError:
            return
        connection = Connection(self, client, server)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            connection.end()
            self._connections.discard(connection)

    async def over(self) -> None:
        """End all connections, those too that were just accepted."""
        await asyncio.sleep(0)
        while self._serving:
            self.cut()
            await asyncio.sleep(0.005)


class Connection:
    """One connection of the product and the one to the server that belongs to it."""

    def __init__(self, wire: Proxy, client: Streams, server: Streams) -> None:
        self._wire = wire
        self._client = client
        self._server = server
        self._last = False

    async def run(self) -> None:
        with suppress(ConnectionError):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._requests())
                tasks.create_task(self._replies())

    def end(self) -> None:
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _requests(self) -> None:
        while data := await self._client[0].read(65_536):
            if self._wire.mode is Mode.DEAD:
                continue
            self._last = self._last or self._wire.is_last(data)
            self._server[1].write(data)
        self.end()

    async def _replies(self) -> None:
        while data := await self._server[0].read(65_536):
            if self._last:
                self._wire.cuts += 1
                self.end()
                return
            if self._wire.latency_s:
                await asyncio.sleep(self._wire.latency_s)
            if self._wire.mode is Mode.PASS:
                self._client[1].write(data)
        self.end()


@asynccontextmanager
async def proxy(upstream: Path) -> AsyncIterator[Proxy]:
    """A proxy to the server at this Unix socket, listening on `port` of loopback."""
    wire = Proxy(upstream)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        await wire.over()
