"""How much of a bare server's speed the ingest route keeps: the same client, one uvicorn worker each, in turns."""

import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from secrets import token_hex
from statistics import median

import msgspec
import psutil
from msgspec import Struct

from app.settings import Settings, environment_with
from bench import FAST
from bench.installation import BOT
from bench.load import Counted, Load

ROUNDS = 1 if FAST else 3
SECONDS = 2.0
CONNECTIONS = 64
_BEYOND_ANY = 10**9  # a rate that is checked and never reached


class Target(Struct, frozen=True):
    """A server under test."""

    name: str
    path: str
    port: int
    process: subprocess.Popen[bytes]


class TakenRecord(Struct, frozen=True):
    """One round of one target: requests a second, the CPU time of each in µs, and how busy the client was."""

    rate: float
    cpu_us: float
    client_busy: float


def measure(settings: Settings, key: str) -> dict[str, list[TakenRecord]]:
    """Alternate the targets in rounds, so that other work of the machine affects all alike."""
    taken: dict[str, list[TakenRecord]] = {}
    with ExitStack() as stack:
        running = [stack.enter_context(target) for target in targets(settings)]
        for run in range(ROUNDS):
            for target in running:
                taken.setdefault(target.name, []).append(_round(target, key, run))
    return taken


def show(taken: dict[str, list[TakenRecord]]) -> None:
    """Each against the bare server of its own round; the median over the rounds."""
    client = "wrk" if shutil.which("wrk") else "the client of bench/load.py"
    print(f"\nRoutes: one uvicorn worker, one entry a request, {CONNECTIONS} connections, by {client}")
    print(f"  {'':<26}{'of bare':>8}{'requests/s':>12}{'CPU µs each':>13}{'CPU of bare':>13}{'client busy':>13}")
    for name, rounds in taken.items():
        bare = taken["bare ASGI app"]
        ratio = median(mine.rate / theirs.rate for mine, theirs in zip(rounds, bare, strict=True))
        cpu = median(mine.cpu_us / theirs.cpu_us for mine, theirs in zip(rounds, bare, strict=True))
        rate, cpu_us = median(item.rate for item in rounds), median(item.cpu_us for item in rounds)
        busy = max(item.client_busy for item in rounds)
        print(f"  {name:<26}{ratio:>8.2f}{rate:>12,.0f}{cpu_us:>13.1f}{cpu:>12.1f}x{busy:>12.0%}")


def targets(
    settings: Settings, *, names: frozenset[str] = frozenset(), under: tuple[str, ...] = (sys.executable,)
) -> Iterator[AbstractContextManager[Target]]:
    """The servers under test, or those of these names; `under` is the command that runs Python."""
    every = {
        "bare ASGI app": ("/", ("-m", "bench.targets", "bare")),
        "FastAPI + pydantic + await": ("/entries", ("-m", "bench.targets", "pydantic")),
        "adjourn ingest": (f"/v1/bots/{BOT}/messages", ("-m", "app.cli", "api", "--fd")),
    }
    for name, (path, command) in every.items():
        if not names or name in names:
            yield _running(name, path, (*under, *command), settings)


@contextmanager
def _running(name: str, path: str, command: tuple[str, ...], settings: Settings) -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        process = subprocess.Popen(
            [*command, str(listener.fileno())],
            env=environment_with(
                redis_url=settings.redis_url,
                database_url=settings.database_url,
                var_dir=settings.var_dir,
                secrets_key=settings.secrets_key,
                rate_entries=_BEYOND_ANY,
                rate_bytes=_BEYOND_ANY,
                log_level="ERROR",
                redis_timeout_s=60,  # under valgrind, or on a busy machine, an answer may take that long
                ingest_deadline_s=60,
            ),
            pass_fds=(listener.fileno(),),
        )
        target = Target(name, path, listener.getsockname()[1], process)
        try:
            _wait_until_it_answers(target)
            yield target
        finally:
            process.terminate()
            process.wait()


def _wait_until_it_answers(target: Target) -> None:
    """The socket listens already, so the first request waits until the process answers it."""
    connection = HTTPConnection("127.0.0.1", target.port, timeout=120)
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.close()


def _round(target: Target, key: str, run: int) -> TakenRecord:
    load = Load(target.port, target.path, key=key, connections=CONNECTIONS, depth=1, seconds=SECONDS, run=run)
    server = psutil.Process(target.process.pid)
    before, client_before = server.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    counted = offer_by_wrk(load) if shutil.which("wrk") else offer(load)
    after, client_after = server.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.user + after.system - before.user - before.system
    client_s = client_after.ru_utime + client_after.ru_stime - client_before.ru_utime - client_before.ru_stime
    return TakenRecord(counted.answered / counted.seconds, cpu_s / counted.total * 1e6, client_s / counted.seconds)


def offer_by_wrk(load: Load) -> Counted:
    """Send the load by wrk, which takes far less time a request than any server under test; every answer is a 200."""
    script, program = Path(__file__).with_name("load.lua"), shutil.which("wrk")
    assert program is not None
    headers = ("-H", f"authorization: Bearer {load.key}", "-H", "content-type: application/json")
    url = f"http://127.0.0.1:{load.port}{load.path}"
    size = ("-t1", f"-c{load.connections}", f"-d{max(1, round(load.seconds))}", "--timeout", "30")
    command = [program, *size, *headers, "-s", str(script), url, "--", f"w{load.run}-{token_hex(4)}"]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120, text=True)
    found = re.search(r"(\d+) requests in ([\d.]+)s", done.stdout)
    assert found is not None, done.stdout
    assert "Non-2xx" not in done.stdout, f"{load.path}: {done.stdout}"
    requests = int(found[1])
    return Counted(requests, requests, {"200": requests}, float(found[2]))


def offer(load: Load, *, timeout_s: float = 60) -> Counted:
    """Send the load from a process of its own; every answer is a 200."""
    command = [sys.executable, "-m", "bench.load", msgspec.json.encode(load).decode()]
    done = subprocess.run(command, check=True, capture_output=True, timeout=timeout_s)
    counted = msgspec.json.decode(done.stdout, type=Counted)
    assert set(counted.statuses) == {"200"}, f"{load.path}: {counted.statuses}"
    return counted
