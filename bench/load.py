"""A load generator that is not the bottleneck: `python -m bench.load JSON`, a process of its own.

Raw sockets, requests made beforehand but for two numbers, `depth` of them under way on each connection. It prints what it
counted as one line of JSON.
"""

import asyncio
import sys
from collections import Counter
from itertools import count
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

_USERS = 1_000
_MARK_USER = b"%(user)"
_MARK_MESSAGE = b"%(message)"


class Load(Struct, frozen=True):
    """The requests to send and the duration. `run` makes message ids of two runs differ."""

    port: int
    path: str
    key: str = ""
    connections: int = 128
    depth: int = 2
    seconds: float = 2.0
    run: int = 0


class Counted(Struct, frozen=True):
    """Requests answered within `seconds`; `total` counts those before and after it too. Statuses of all but the warm-up."""

    answered: int
    total: int
    statuses: dict[str, int]
    seconds: float


class Requests:
    """The next requests, as bytes ready to send: an entry of one of 1,000 users, with a message id of its own."""

    def __init__(self, load: Load) -> None:
        entry = b'{"message_id":"r%03d-%%09d","user_id":"user-%%04d","role":"user","text":"hello, where is my order?"}' % load.run
        length = len(entry % (0, 0))
        head = (
            f"POST {load.path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {load.key}\r\n"
            f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
        self._template = head.encode().replace(b"%", b"%%") + entry
        self._numbers = count()

    def take(self, how_many: int) -> bytes:
        template = self._template
        numbers = [next(self._numbers) for _ in range(how_many)]
        return b"".join([template % (number, number % _USERS) for number in numbers])


class Connection(asyncio.Protocol):
    """Keeps `depth` requests under way, and none any more once `finish` is called."""

    def __init__(self, requests: Requests, depth: int, counted: Counter[str]) -> None:
        self._requests = requests
        self._depth = depth
        self._counted = counted
        self._rest = b""
        self._under_way = 0
        self._transport: asyncio.Transport | None = None
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._send(self._depth)

    def data_received(self, data: bytes) -> None:
        answers, self._rest = split_answers(self._rest + data)
        self._under_way -= len(answers)
        for status in answers:
            self._counted[status] += 1
        self._send(len(answers) if self._depth else 0)
        if self._transport is not None and not self._under_way:
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._under_way:
            self._counted["lost"] += self._under_way
        self.over.set_result(None)

    def finish(self) -> None:
        self._depth = 0

    def _send(self, how_many: int) -> None:
        if how_many and self._transport is not None:
            self._under_way += how_many
            self._transport.write(self._requests.take(how_many))


def split_answers(data: bytes) -> tuple[list[str], bytes]:
    """The statuses of the whole answers in `data`, and the bytes of one that is not whole yet."""
    statuses = []
    at = 0
    while (end := data.find(b"\r\n\r\n", at)) >= 0:
        head = data[at:end].lower()
        start = head.index(b"content-length:") + 15
        stop = head.find(b"\r\n", start)
        after = end + 4 + int(head[start : stop if stop >= 0 else None])
        if after > len(data):
            break
        statuses.append(head[9:12].decode())
        at = after
    return statuses, data[at:]


async def run(load: Load) -> Counted:
    """Warm up for a quarter of the time, then count."""
    loop = asyncio.get_running_loop()
    counted: Counter[str] = Counter()
    requests = Requests(load)
    connections = [
        (await loop.create_connection(lambda: Connection(requests, load.depth, counted), "127.0.0.1", load.port))[1]
        for _ in range(load.connections)
    ]
    await asyncio.sleep(load.seconds / 4)
    warm = counted.total()
    counted.clear()
    began = loop.time()
    await asyncio.sleep(load.seconds)
    answered, seconds = counted.total(), loop.time() - began
    for connection in connections:
        connection.finish()
    await asyncio.gather(*(connection.over for connection in connections))
    return Counted(answered, warm + counted.total(), dict(counted), seconds)


if __name__ == "__main__":
    counted = uvloop.run(run(msgspec.json.decode(sys.argv[1], type=Load)))
    sys.stdout.buffer.write(msgspec.json.encode(counted) + b"\n")
