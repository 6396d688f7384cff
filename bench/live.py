"""Clients that follow live sessions, cut off and connected again, while entries come in: `python -m bench.live`.

python -m bench.live          prints the times of entries without and with the clients, and what the clients missed
python -m bench.live JSON     the clients or the entries, in a process of their own

One API process serves both. Each client is a socket of its own that is aborted once at a random time, and goes on with
`Last-Event-ID`. All of them must get the same events as one that reads them again afterwards: none missing, none twice, in order.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from random import Random
from statistics import quantiles
from time import perf_counter
from typing import cast
from zlib import crc32

import httpx
import msgspec
import psutil
import uvloop
from msgspec import Struct

from bench import FAST, routes
from bench.installation import BOT, installation, make_bots
from bench.load import split_answers

LAST_USER = "the-last"
_FRAME = re.compile(rb"^id: ([\d-]+)\n(?:event: (\S+)\n)?", re.MULTILINE)
_CONNECTIONS = 64
_STARTS = 100  # of so many entries one opens a session, and closes the one before
_TICK_S = 0.01


class Part(Struct, frozen=True):
    """A process's part: follow as `clients` from the event `after` on, or without clients send `rate` entries a second."""

    port: int
    key: str
    seconds: float
    clients: int = 0
    after: str = ""
    rate: int = 0
    run: int = 0


class Followed(Struct, frozen=True):
    """The events that clients got: how many clients, events and connections, and how many differ from a later reading."""

    clients: int
    events: int
    connections: int
    differing: int
    resets: int


class EntryTimes(Struct, frozen=True):
    """From the instant that an entry was to be sent to its answer."""

    entries: int
    p50_ms: float
    p99_ms: float
    seconds: float


class LiveCost(Struct, frozen=True):
    """Entries without and with clients, and what these got."""

    without: EntryTimes
    beside: EntryTimes
    followed: Followed
    cpu_s: tuple[float, float]  # of the API process, without and beside the clients


def measure(
    *, clients: int = 50 if FAST else 1_000, rate: int = 200 if FAST else 1_000, seconds: float = 3 if FAST else 20
) -> LiveCost:
    """Entries alone, and then beside the clients."""
    with installation() as (settings, _):
        key = uvloop.run(make_bots(settings.redis_url or ""))
        (running,) = routes.targets(settings, names=frozenset({"adjourn ingest"}))
        with running as target:
            api = httpx.Client(base_url=f"http://127.0.0.1:{target.port}", headers={"authorization": f"Bearer {key}"}, timeout=60)
            entries = Part(target.port, key, seconds, rate=rate)
            api_process = psutil.Process(target.process.pid)
            cpu_s = [_cpu_s(api_process)]
            without = _result(entries, EntryTimes)
            cpu_s.append(_cpu_s(api_process))
            after = api.get("/v1/live?limit=1").json()["last_event_id"]
            with _process(Part(target.port, key, seconds, clients=clients, after=after)) as following:
                assert following.stdout is not None
                assert following.stdout.readline() == b"open\n"
                cpu_s.append(_cpu_s(api_process))
                beside = _result(msgspec.structs.replace(entries, run=1), EntryTimes)
                cpu_s.append(_cpu_s(api_process))
                entry = {"user_id": LAST_USER, "role": "user", "text": "over"}
                api.post(f"/v1/bots/{BOT}/messages", json=entry).raise_for_status()
                followed = msgspec.json.decode(following.stdout.readline(), type=Followed)
            return LiveCost(without, beside, followed, (cpu_s[1] - cpu_s[0], cpu_s[3] - cpu_s[2]))


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def show(cost: LiveCost) -> None:
    """Print the events that were lost or doubled, and the ratio of the entries' times."""
    got, without, beside = cost.followed, cost.without, cost.beside
    print(f"\nLive: {got.clients:,} clients, {got.connections:,} connections, {got.events:,} events each, one API process")
    print(f"  clients with an event lost or doubled  {got.differing}; sent `reset`: {got.resets}")
    for name, times, cpu_s in zip(("without", "beside"), (without, beside), cost.cpu_s, strict=True):
        shown = f"p50 {times.p50_ms:7.1f} ms   p99 {times.p99_ms:7.1f} ms   API process {cpu_s / times.seconds:.0%} of a core"
        print(f"  {times.entries:,} entries {name:<7} the clients, in {times.seconds:.0f} s  {shown}")
    print(f"  p99 beside / without         {beside.p99_ms / without.p99_ms:.2f}")


def _result(part: Part, kind: type[EntryTimes]) -> EntryTimes:
    with _process(part) as process:
        return msgspec.json.decode(process.communicate()[0], type=kind)


@contextmanager
def _process(part: Part) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "bench.live", msgspec.json.encode(part).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.terminate()


class Client(asyncio.Protocol):
    """One client: the number and checksum of the events that it got, over all its connections."""

    def __init__(self, part: Part, after: str) -> None:
        self._part = part
        self._last_id = after.encode()
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._text = b""
        self._in_body = False
        self.events = self.checksum = self.connections = self.resets = 0
        self.over = asyncio.get_running_loop().create_future()
        self.opened = asyncio.Event()

    async def connect(self) -> None:
        """Follow from the event after the last one that came whole."""
        self._unread, self._text, self._in_body = b"", b"", False
        self.connections += 1
        self._transport, _ = await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self._part.port)
        head = f"GET /v1/live/events HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {self._part.key}\r\nlast-event-id: "
        self._transport.write(head.encode() + self._last_id + b"\r\n\r\n")

    async def cut_once(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if self._transport is not None:
            self._transport.abort()
        await self.connect()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if not self._in_body:
            head, found, rest = self._unread.partition(b"\r\n\r\n")
            if not found:
                return
            assert b" 200 " in head.partition(b"\r\n")[0], head
            self._in_body, self._unread = True, rest
            self.opened.set()
        for text in self._chunks():
            self._text += text
        whole, _, self._text = self._text.rpartition(b"\n\n") if b"\n\n" in self._text else (b"", b"", self._text)
        if whole:
            self._read(whole + b"\n\n")

    def _chunks(self) -> Iterator[bytes]:
        while (end := self._unread.find(b"\r\n")) >= 0:
            size = int(self._unread[:end], 16)
            if len(self._unread) < end + 2 + size + 2:
                return
            yield self._unread[end + 2 : end + 2 + size]
            self._unread = self._unread[end + 2 + size + 2 :]

    def _read(self, frames: bytes) -> None:
        for id_, kind in _FRAME.findall(frames):
            self._last_id = id_
            if kind == b"reset":
                self.resets += 1
            elif kind:
                self.events += 1
                self.checksum = crc32(id_, self.checksum)
        if LAST_USER.encode() in frames and not self.over.done():
            self.over.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def follow(part: Part) -> None:
    """Open the clients, say so, cut each off once, and print what they got when all have the last event."""
    random, tasks = Random(part.clients), []
    clients = [Client(part, part.after) for _ in range(part.clients)]
    for client in clients:
        await client.connect()
        await client.opened.wait()
    sys.stdout.write("open\n")
    sys.stdout.flush()
    tasks = [asyncio.create_task(client.cut_once(random.uniform(0, part.seconds))) for client in clients]
    await asyncio.gather(*tasks, *(client.over for client in clients))
    later = Client(part, part.after)
    await later.connect()
    await later.over
    differing = sum((client.events, client.checksum) != (later.events, later.checksum) for client in clients)
    connections, resets = sum(client.connections for client in clients), sum(client.resets for client in clients)
    for client in (*clients, later):
        client.close()
    _print(Followed(part.clients, later.events, connections, differing, resets))


class Sender(asyncio.Protocol):
    """One connection, with one entry under way."""

    def __init__(self, part: Part, free: "asyncio.Queue[Sender]", took_ms: list[float]) -> None:
        self._head = f"POST /v1/bots/{BOT}/messages HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {part.key}\r\n"
        self._free, self._took_ms = free, took_ms
        self._transport: asyncio.Transport | None = None
        self._began = 0.0
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by descent
        self._free.put_nowait(self)

    def send(self, body: bytes, began: float) -> None:
        self._began = began
        assert self._transport is not None
        head = f"{self._head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        statuses, self._unread = split_answers(self._unread + data)
        for status in statuses:
            assert status == "200", status
            self._took_ms.append((perf_counter() - self._began) * 1000)
            self._free.put_nowait(self)


async def send(part: Part) -> None:
    """Send entries at their rate, whatever the answers take, and print their times."""
    free: asyncio.Queue[Sender] = asyncio.Queue()
    took_ms: list[float] = []
    loop, numbers = asyncio.get_running_loop(), count()
    for _ in range(_CONNECTIONS):
        await loop.create_connection(lambda: Sender(part, free, took_ms), "127.0.0.1", part.port)
    began = perf_counter()
    for number in numbers:
        at = began + number / part.rate
        if at >= began + part.seconds:
            break
        if at - perf_counter() > _TICK_S:
            await asyncio.sleep(_TICK_S)
        (await free.get()).send(_entry(part, number), at)
    for _ in range(_CONNECTIONS):  # until the last one is answered
        await free.get()
    steps = quantiles(took_ms[part.rate :], n=100)  # after the first second, in which all users are new
    _print(EntryTimes(len(took_ms), steps[49], steps[98], perf_counter() - began))


def _entry(part: Part, number: int) -> bytes:
    kind = "session.start" if number % _STARTS == 0 else "message"
    user = number * 7 % 1_000
    return (
        f'{{"message_id":"l{part.run}-{number}","user_id":"user-{user}","role":"user","type":"{kind}","text":"hello"}}'.encode()
    )


def _print(result: Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        part = msgspec.json.decode(sys.argv[1], type=Part)
        uvloop.run(follow(part) if part.clients else send(part))
    else:
        show(measure())
