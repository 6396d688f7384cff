"""`python -m bench [part …]`: all of `PARTS`, or some of them.

`instructions` needs valgrind, and `peers` minutes more, so they run where they are named.
"""

import sys

import psutil
import uvloop

from app.resources import open_resources
from app.settings import Settings
from bench import FAST, archivist, deliveries, footprint, instructions, lag, ledger, peers, routes
from bench.installation import installation, make_bots

PARTS = ("routes", "ledger", "archivist", "deliveries", "footprint", "lag")


async def _in_process(settings: Settings, parts: list[str], redis: psutil.Process) -> peers.Contest | None:
    async with open_resources(settings) as resources:
        if "ledger" in parts:
            ledger.show(await ledger.measure(resources, redis))
        if "archivist" in parts:
            archivist.show(await archivist.measure(resources))
        if "deliveries" in parts:
            deliveries.show(await deliveries.measure(resources))
        if "footprint" in parts:
            footprint.show_sessions(await footprint.measure_sessions(resources))
        if "lag" in parts:  # after those whose bots it replaces
            lag.show(await lag.measure(resources, beside=(1_000,) if FAST else (1_000, 100_000)))
        return await peers.measure(resources) if "peers" in parts else None


def main(parts: list[str]) -> None:
    """Each part in a run of its own, one after the other."""
    if "footprint" in parts:
        footprint.show_starts(footprint.measure_starts())
    with installation() as (settings, servers):
        key = uvloop.run(make_bots(settings.redis_url or ""))
        if "routes" in parts:
            routes.show(routes.measure(settings, key))
        if "instructions" in parts:
            instructions.show(instructions.measure(settings, key))
        ours = uvloop.run(_in_process(settings, parts, psutil.Process(servers.redis_pid)))
        if ours is not None:  # the last, as it empties Redis
            peers.show(ours, uvloop.run(peers.measure_peers(settings)))


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
