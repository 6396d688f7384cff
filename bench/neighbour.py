"""A quiet bot beside a busy one: `python -m bench.neighbour [--flood] [case …]`.

The quiet bot sends 20 entries a second, half of which close a session, and gets the webhooks of these. The busy one sends 100
times that, in each case of another kind; with `--flood` it sends as fast as it is answered, and rates are switched off. Both are
processes of their own, as are the API, the worker, the servers and the receiver of the busy bot. Each case stands between two
measurements of the quiet bot alone, whose mean it is compared with.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from http.client import HTTPConnection
from itertools import count
from socket import create_server
from time import monotonic, time
from typing import Any

import msgspec
import uvloop
from msgspec import Struct
from redis.asyncio import Redis

from app.live import keys
from app.settings import Settings, environment_with
from bench.installation import installation

QUIET, BUSY = "quiet", "busy"
SECONDS = 10.0
PAIRS_PER_S = 10
CONNECTIONS = 8
SHARDS = Settings.model_fields["shards"].default
LATEST_S = 20.0
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class Offer(Struct, frozen=True):
    """The requests of one process. `per_s`: so many a second over all connections; 0 is as many as are answered."""

    port: int
    key: str
    case: str
    run: str
    seconds: float = SECONDS
    connections: int = 32
    per_s: float = 0


class Observed(Struct, frozen=True):
    """In ms: from request to answer, and from the request that closed a session to its webhook. `statuses` of all answers."""

    entries: list[float]
    webhooks: list[float]
    statuses: dict[str, int]


class Case(Struct, frozen=True):
    """A way to be busy: the request to send, and how many of them are 100 times what the quiet bot sends.

    receivers   how many endpoints the busy bot has, and the path of each at `bench.sink`
    """

    per_s: float
    request: Callable[[Offer, int], bytes]
    receivers: tuple[int, str] = (0, "")


def entries_of(offer: Offer, number: int) -> bytes:
    return _post(offer, {"user_id": f"user-{number % 1_000}", "role": "user", "text": "hello, where is my order?"})


def conversation_of(offer: Offer, number: int) -> bytes:
    user = f"user-{offer.run}"
    return _post(offer, [{"user_id": user, "role": "user", "text": f"hello {number}-{each}"} for each in range(500)])


def deep_of(offer: Offer, number: int) -> bytes:
    """Twenty entries of 1,950 values each, of one conversation."""
    inner: Any = {f"k{each}": list(range(60)) for each in range(31)}
    for level in range(4):
        inner = {f"level{level}": inner}
    entry = {"user_id": f"user-{number % 4}", "role": "user", "text": "x", "context": inner}
    return _post(offer, [entry] * 20)


def closes_of(offer: Offer, number: int) -> bytes:
    """Two hundred and fifty sessions, opened and closed."""
    users = [f"{offer.run}-{number}-{each}" for each in range(250)]
    said = [{"user_id": user, "role": "user", "text": "hello"} for user in users]
    return _post(offer, [*said, *({"user_id": user, "role": "user", "type": "session.end"} for user in users)])


def queries_of(offer: Offer, number: int) -> bytes:
    path = f"/v1/sessions?bot={BUSY}&text=needle{number}&session_metadata.order={number}"
    return f"GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {offer.key}\r\n\r\n".encode()


CASES = {
    "entries": Case(2_000, entries_of),
    "batches of one conversation": Case(4, conversation_of),
    "deep contexts": Case(100, deep_of),
    "mass closing": Case(4, closes_of),
    "failing webhooks": Case(4, closes_of, (20, "/0/500")),
    "slow receivers": Case(4, closes_of, (20, "/10000")),
    "expensive filters": Case(2_000, queries_of),
}


def _post(offer: Offer, entries: object, *, bot: str = BUSY) -> bytes:
    body = msgspec.json.encode(entries)
    path = f"/v1/bots/{bot}/messages" + ("/batch" if isinstance(entries, list) else "")
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {offer.key}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class Wire:
    """One connection that is kept; an answer at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[str, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            start = head.index(b"content-length:") + 15
            return head[9:12].decode(), await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._streams = None  # it was idle for too long
            return await self.send(request)


async def be_busy(offer: Offer) -> Observed:
    """Send until the time is over; requests that are late are not made up for."""
    loop, numbers, statuses = asyncio.get_running_loop(), count(), dict[str, int]()
    began = loop.time()

    async def keep_sending() -> None:
        wire = Wire(offer.port)
        while (elapsed := loop.time() - began) < offer.seconds:
            number = next(numbers)
            if offer.per_s and (early := number / offer.per_s - elapsed) > 0:
                await asyncio.sleep(early)
            status, _ = await wire.send(CASES[offer.case].request(offer, number))
            statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(keep_sending() for _ in range(offer.connections)))
    return Observed([], [], statuses)


async def be_quiet(offer: Offer) -> Observed:
    """Open and close a session every tenth of a second, and wait for the webhooks."""
    loop, closed, arrived = asyncio.get_running_loop(), dict[str, float](), dict[str, float]()
    taken, statuses, began = list[float](), dict[str, int](), loop.time()

    async def send(wire: Wire, entry: dict[str, str]) -> bytes:
        request = _post(offer, entry, bot=QUIET)
        sent = loop.time()
        status, answer = await wire.send(request)
        taken.append((loop.time() - sent) * 1_000)
        statuses[status] = statuses.get(status, 0) + 1
        return answer

    async def converse(first: int) -> None:
        wire = Wire(offer.port)
        for number in range(first, int(offer.seconds * PAIRS_PER_S), CONNECTIONS):
            await asyncio.sleep(max(0, began + number / PAIRS_PER_S - loop.time()))
            user = f"{offer.run}-{number}"
            await send(wire, {"user_id": user, "role": "user", "text": "hello"})
            at = loop.time()
            answer = await send(wire, {"user_id": user, "role": "user", "type": "session.end"})
            if b'"closed":[{' in answer:
                closed[msgspec.json.decode(answer)["closed"][0]["session_id"]] = at

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                start = (head := (await reader.readuntil(b"\r\n\r\n")).lower()).index(b"content-length:") + 15
                body = await reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
                arrived.setdefault(msgspec.json.decode(body)["data"]["session"]["id"], loop.time())
                writer.write(_OK)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    async with await asyncio.start_server(receive, "127.0.0.1", int(os.environ["RECEIVER_PORT"])):
        await asyncio.gather(*(converse(first) for first in range(CONNECTIONS)))
        until = loop.time() + LATEST_S
        while loop.time() < until and not closed.keys() <= arrived.keys():  # noqa: ASYNC110 - two conditions
            await asyncio.sleep(0.02)
    late = loop.time()
    return Observed(taken, [(arrived.get(session, late) - at) * 1_000 for session, at in closed.items()], statuses)


class Running(Struct, frozen=True):
    """The product: its port, and the keys of both bots."""

    port: int
    admin: str
    key_of: dict[str, str]
    receiver_port: int
    sink_port: int
    redis_url: str

    def ask(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"authorization": f"Bearer {self.admin}", "content-type": "application/json"}
        connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status in {200, 201, 204}, (method, path, answer.status, text)
        return msgspec.json.decode(text) if text else None


@contextmanager
def running(settings: Settings, *, flood: bool) -> Iterator[Running]:
    """One API process, one worker, both bots, and the receiver of the busy one."""
    rates: dict[str, object] = {"rate_entries": 0, "rate_bytes": 0, "rate_requests": 0} if flood else {}
    environment = environment_with(
        redis_url=settings.redis_url,
        database_url=settings.database_url,
        var_dir=settings.var_dir,
        secrets_key=settings.secrets_key,
        webhook_allow_private=True,
        log_level="ERROR",
        **rates,
    )
    create = [sys.executable, "-m", "app.cli", "keys", "create", "--name", "bench"]
    admin = subprocess.run(create, env=environment, check=True, capture_output=True, text=True).stdout.strip()
    with ExitStack() as stack:
        listener = stack.enter_context(create_server(("127.0.0.1", 0), backlog=512))
        receiver = stack.enter_context(create_server(("127.0.0.1", 0)))
        receiver_port = receiver.getsockname()[1]
        receiver.close()
        commands: list[tuple[list[str], dict[str, Any]]] = [
            (["-m", "app.cli", "api", "--fd", str(listener.fileno())], {"pass_fds": (listener.fileno(),), "env": environment}),
            (["-m", "app.cli", "worker"], {"env": environment}),
            (["-m", "bench.sink"], {"stdout": subprocess.PIPE}),
        ]
        processes = [stack.enter_context(_process(command, **options)) for command, options in commands]
        assert processes[2].stdout is not None
        sink_port = int(processes[2].stdout.readline())
        made = Running(listener.getsockname()[1], admin, {}, receiver_port, sink_port, settings.redis_url or "")
        for bot in (QUIET, BUSY):
            made.ask("POST", "/v1/bots", {"id": bot, "name": bot})
            asked = {"name": bot, "scopes": ["ingest", "read"], "bots": [bot]}
            made.key_of[bot] = made.ask("POST", "/v1/keys", asked)["key"]
        url = f"http://127.0.0.1:{receiver_port}/"
        made.ask("POST", f"/v1/bots/{QUIET}/endpoints", {"url": url, "events": ["session.closed"]})
        yield made


@contextmanager
def _process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:  # noqa: ANN401 - those of Popen
    process = subprocess.Popen([sys.executable, *command], **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def _sending(made: Running, case: str, run: str, *, flood: bool) -> AsyncIterator[asyncio.Task[Observed]]:
    """The busy bot, from a moment before the measurement until after it."""
    offer = Offer(made.port, made.key_of[BUSY], case, run, SECONDS + 3, per_s=0 if flood else CASES[case].per_s)
    endpoints = [
        made.ask("POST", f"/v1/bots/{BUSY}/endpoints", {"url": url, "events": ["session.closed"]})["id"]
        for url in [f"http://127.0.0.1:{made.sink_port}{CASES[case].receivers[1]}"] * CASES[case].receivers[0]
    ]
    sending = asyncio.create_task(_in_process("be_busy", offer, made))
    await asyncio.sleep(2)
    try:
        yield sending
    finally:
        await sending
        for endpoint in endpoints:
            made.ask("DELETE", f"/v1/endpoints/{endpoint}")


async def _in_process(role: str, offer: Offer, made: Running) -> Observed:
    command = [sys.executable, "-m", "bench.neighbour", role, msgspec.json.encode(offer).decode()]
    environment = {**os.environ, "RECEIVER_PORT": str(made.receiver_port)}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
    output, _ = await process.communicate()
    return msgspec.json.decode(output, type=Observed)


async def measure(made: Running, cases: list[str], *, flood: bool) -> None:
    """Print a line for each case as it is measured."""
    title = "as fast as it is answered, without rates" if flood else "at 100 times its entries"
    print(f"\nNeighbour: a quiet bot beside one that sends {title}; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print(f"  {'':<30}{'ingest p50':>10}{'p99':>9}{'alone':>8}{'ratio':>7}{'webhook p50':>13}{'p99':>9}   of the busy bot")

    async def alone() -> Observed:
        return await _in_process("be_quiet", Offer(made.port, made.key_of[QUIET], "", f"q{monotonic():.3f}", SECONDS / 2), made)

    await alone()  # warms up
    for number, case in enumerate(cases):
        run = f"{case[:4].strip()}{number}-{time():.0f}"
        before = await alone()
        async with _sending(made, case, run, flood=flood) as sending:
            beside = await _in_process("be_quiet", Offer(made.port, made.key_of[QUIET], "", f"b{run}", SECONDS), made)
            busy = await sending
        await _until_archived(made)
        after = await alone()
        p99_alone = (percentile(before.entries, 0.99) + percentile(after.entries, 0.99)) / 2
        p99 = percentile(beside.entries, 0.99)
        print(
            f"  {case:<30}{percentile(beside.entries, 0.5):>7.1f} ms{p99:>6.0f} ms{p99_alone:>5.0f} ms{p99 / p99_alone:>7.1f}"
            f"{percentile(beside.webhooks, 0.5):>10.0f} ms{percentile(beside.webhooks, 0.99):>6.0f} ms   {busy.statuses}",
            flush=True,
        )


async def _until_archived(made: Running) -> None:
    """Wait until what the busy bot closed is archived: next, the quiet bot is measured alone."""
    async with Redis.from_url(made.redis_url) as redis, asyncio.timeout(300):
        while sum([await redis.xlen(keys.events(shard)) for shard in range(SHARDS)]) > PAIRS_PER_S:  # noqa: ASYNC110 - of others
            await asyncio.sleep(0.2)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values) or [float("nan")]
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main(arguments: list[str]) -> None:
    """A process of one of the two bots, or the whole measurement."""
    if arguments and arguments[0] in {"be_busy", "be_quiet"}:
        send = be_busy if arguments[0] == "be_busy" else be_quiet
        observed = uvloop.run(send(msgspec.json.decode(arguments[1], type=Offer)))
        sys.stdout.buffer.write(msgspec.json.encode(observed))
        return
    flood = "--flood" in arguments
    cases = [argument for argument in arguments if argument != "--flood"]
    with installation() as (settings, _), running(settings, flood=flood) as made:
        uvloop.run(measure(made, cases or list(CASES), flood=flood))


if __name__ == "__main__":
    main(sys.argv[1:])
