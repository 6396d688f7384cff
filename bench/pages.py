"""How long the console's pages take on the server, and their size, on the sessions of `bench.fill`.

python -m bench.pages    on DATABASE_URL and REDIS_URL of an installation that `python -m bench.fill N` has filled

It adds a key, and the bots if they are not there. Each page is asked for as a browser does it,
through the whole app in this process, one request after the other, so the time is the server's alone. The CPU time is of this
process: other work of the machine does not change it. The rest is Postgres, Redis, and waiting for a core.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from statistics import quantiles
from time import perf_counter, process_time

import httpx
from msgspec import Struct

from app.archive import keys, rollup
from app.config.publish import publish
from app.console.app import PAGES
from app.ids import new_id, new_key
from app.main import create_app
from app.resources import Resources
from app.settings import Settings
from bench.fill import BOTS, LARGE

ROUNDS = 20
WARM_UP = 3
PERIOD = "from=2026-11-14T00:00&to=2026-11-21T00:00"
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "/sessions": ("", f"?bot={LARGE}&reason=inactivity", "?channel=twitter&outcome=dropped&order=-closed_at"),
    "/metrics": (f"?{PERIOD}", f"?bot={LARGE}&metric=contained&dimension=intent&{PERIOD}"),
}
"""The queries with which a page is measured; by default none."""


class PageCost(Struct, frozen=True):
    """Median and 95th percentile of the time, the CPU time of a request, and the bytes of the answer."""

    median_ms: float
    most_ms: float
    cpu_ms: float
    size: int


async def measure(settings: Settings, *, rounds: int = ROUNDS) -> AsyncIterator[tuple[str, PageCost]]:
    """The cost of each page; the first requests are not counted."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        resources: Resources = app.state.resources
        key = await _prepare(resources)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bench", follow_redirects=True) as browser:
            (await browser.post("/console/sign-in", data={"key": key})).raise_for_status()
            as_key = {"authorization": f"Bearer {key}"}
            for bot in BOTS:  # 409 if it is there
                await browser.post("/v1/bots", json={"id": bot}, headers=as_key)
            session = (await browser.get("/v1/sessions?limit=1", headers=as_key)).json()
            names = {"bot": LARGE, "session_id": session["sessions"][0]["id"]}
            for address in _addresses(names):
                yield address, await _page(browser, address, rounds)


def _addresses(names: Mapping[str, str]) -> list[str]:
    """Every page of which there is a thing to show: no delivery, no reject and no sandbox is filled in."""
    paths = [path for path in PAGES if not path.endswith(("_id}", "{kind}", "sandbox")) or "{session_id}" in path]
    return [path.format_map(names) + query for path in paths for query in VARIANTS.get(path, ("",))]


async def _page(browser: httpx.AsyncClient, address: str, rounds: int) -> PageCost:
    took_ms, size, cpu_s = [], 0, 0.0
    for number in range(rounds + WARM_UP):
        if number == WARM_UP:
            cpu_s = process_time()
        began = perf_counter()
        reply = await browser.get(f"/console{address}")
        took_ms.append((perf_counter() - began) * 1000)
        assert reply.status_code == httpx.codes.OK, f"{address}: {reply.text}"
        size = len(reply.content)
    steps = quantiles(took_ms[WARM_UP:], n=20)
    return PageCost(steps[9], steps[18], (process_time() - cpu_s) / rounds * 1000, size)


async def _prepare(resources: Resources) -> str:
    """Make a key for everything, and the hours that charts are made from."""
    key = new_key()
    async with resources.engine.begin() as conn:
        id_ = new_id(resources.clock.now_ms())
        await keys.create(conn, id_, key, name="bench", scopes=["admin", "read", "ingest"], bots=None)
    while await rollup.RollUp(resources.engine).run_once():
        pass
    await resources.config.caught_up(await publish(resources.engine, resources.redis), timeout_s=10)
    return key


async def _main() -> None:
    async for address, cost in measure(Settings.load()):
        times = f"p50 {cost.median_ms:7.1f} ms   p95 {cost.most_ms:7.1f} ms   CPU {cost.cpu_ms:7.1f} ms"
        print(f"{address:75} {times}   {cost.size / 1000:6.1f} KB", flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
