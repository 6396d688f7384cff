"""The cost of open consoles for ingest: the CPU time that 200 open pages take of an API process.

python -m bench.consoles           prints the ratio
python -m bench.consoles JSON      the pages, in a process of its own

One API process serves both. Each page follows the server-sent events of the first page and renders it anew by the rules of
`console.js`, whose times are read from there. One more client opens or closes a session each half second, so that pages have
something to show; a page that the load delays pauses for longer, as in a browser.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil
from random import random
from time import perf_counter, sleep, time

import httpx
import msgspec
import psutil
import uvloop
from msgspec import Struct

from app.console.app import REFRESH_HEADER
from app.console.pages import STATIC
from bench import routes
from bench.installation import BOT, installation, make_bots
from bench.load import Load

PAGES = 200
SECONDS = 10.0
_SETTLE_S = 6.0  # after which the pages have shown their first change, all at once
_CONSTANT = re.compile(r"^const (\w+) = (\d+);", re.MULTILINE)


class Opened(Struct, frozen=True):
    """The pages to open."""

    port: int
    key: str
    pages: int = PAGES


class Costs(Struct, frozen=True):
    """Shares of a core that the API process takes without the pages and with them, and the CPU time of an entry in s."""

    idle: float
    pages: float
    entry_s: float


def measure() -> Costs:
    """The pages without any entries: beside entries the process answers later, and they pause for longer."""
    with installation() as (settings, _):
        key = uvloop.run(make_bots(settings.redis_url or ""))
        (running,) = routes.targets(settings, names=frozenset({"adjourn ingest"}))
        with running as target:
            idle = _share(target)
            with _pages(Opened(target.port, key)):
                pages = _share(target)
            began_s = _cpu_s(target)
            load = Load(target.port, target.path, key=key, connections=routes.CONNECTIONS, depth=1, seconds=SECONDS)
            counted = routes.offer(load)
            return Costs(idle, pages, (_cpu_s(target) - began_s) / counted.total)


def show(costs: Costs) -> None:
    """The ratio of the entries that one process can take beside the pages."""
    share = costs.pages - costs.idle
    print(f"\nConsoles: {PAGES} open first pages, one API process, a session opens or closes each half second")
    print(f"  CPU of the pages  {share:.1%} of a core, as much as {share / costs.entry_s:,.0f} entries a second")
    print(f"  entries           {1 - share:.3f} of those without pages fit beside them")


def _share(target: routes.Target) -> float:
    began_s = _cpu_s(target)
    sleep(SECONDS)
    return (_cpu_s(target) - began_s) / SECONDS


def _cpu_s(target: routes.Target) -> float:
    times = psutil.Process(target.process.pid).cpu_times()
    return float(times.user + times.system)


@contextmanager
def _pages(opened: Opened) -> Iterator[None]:
    """Open pages until the end of the block; they are open when it begins."""
    command = [sys.executable, "-m", "bench.consoles", msgspec.json.encode(opened).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as pages:
        assert pages.stdout is not None
        assert pages.stdout.readline() == b"open\n"
        try:
            yield
        finally:
            pages.terminate()


async def open_pages(opened: Opened) -> None:
    """Sign in, open the pages, say so, and go on until this process is ended."""
    times = {name: int(value) / 1000 for name, value in _CONSTANT.findall((STATIC / "console.js").read_text())}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    url = f"http://127.0.0.1:{opened.port}"
    async with (
        httpx.AsyncClient(base_url=url, limits=limits, timeout=60, follow_redirects=True) as browser,
        asyncio.TaskGroup() as pages,
    ):
        (await browser.post("/console/sign-in", data={"key": opened.key})).raise_for_status()
        all_open = asyncio.Barrier(opened.pages + 1)
        for _ in range(opened.pages):
            pages.create_task(_Page(browser, times).stay_open(all_open))
        await all_open.wait()
        closing = pages.create_task(_open_and_close(browser, opened.key))
        await asyncio.sleep(_SETTLE_S)
        sys.stdout.write("open\n")
        sys.stdout.flush()
        await closing


async def _open_and_close(browser: httpx.AsyncClient, key: str) -> None:
    path, as_key = f"/v1/bots/{BOT}/messages", {"authorization": f"Bearer {key}"}
    while True:
        for kind in ("session.start", "session.end"):
            await browser.post(path, json={"user_id": "visitor", "role": "user", "type": kind}, headers=as_key)
            await asyncio.sleep(0.5)


class _Page:
    """One page, as `console.js` keeps it current."""

    def __init__(self, browser: httpx.AsyncClient, times: dict[str, float]) -> None:
        self._browser = browser
        self._times = times
        self._changed = asyncio.Event()

    async def stay_open(self, all_open: asyncio.Barrier) -> None:
        async with self._browser.stream("GET", "/console/live/events", timeout=None) as events, asyncio.TaskGroup() as tasks:
            events.raise_for_status()
            await all_open.wait()
            tasks.create_task(self._refresh())
            async for line in events.aiter_lines():
                if line.startswith("event:"):
                    self._changed.set()

    async def _refresh(self) -> None:
        earliest = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._times["FALLBACK_MS"]):
                    await self._changed.wait()
            await asyncio.sleep(self._times["SOON_MS"] * (1 + random()) + max(0, earliest - time()))
            self._changed.clear()
            began = perf_counter()
            with suppress(httpx.TransportError):  # a kept connection that the server closes; a page tries again after its pause
                await self._browser.get("/console/", headers={REFRESH_HEADER: "1"})
            pause_s = min(self._times["PAUSE_TIMES"] * 1000 * (perf_counter() - began), self._times["FALLBACK_MS"])
            earliest = ceil((time() + pause_s) / self._times["PAUSE_MS"]) * self._times["PAUSE_MS"]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(open_pages(msgspec.json.decode(sys.argv[1], type=Opened)))
    else:
        show(measure())
