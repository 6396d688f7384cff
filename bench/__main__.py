"""`python -m bench [part …]`: `routes`, `ledger`, `archivist` and `deliveries`, or some of them, or `instructions`."""

import sys

import psutil
import uvloop

from app.resources import open_resources
from app.settings import Settings
from bench import archivist, deliveries, instructions, ledger, routes
from bench.installation import installation, make_bots


async def _in_process(settings: Settings, parts: list[str], redis: psutil.Process) -> None:
    async with open_resources(settings) as resources:
        if "ledger" in parts:
            ledger.show(await ledger.measure(resources, redis))
        if "archivist" in parts:
            archivist.show(await archivist.measure(resources))
        if "deliveries" in parts:
            deliveries.show(await deliveries.measure(resources))


def main(parts: list[str]) -> None:
    """Each part in a run of its own, one after the other."""
    with installation() as (settings, servers):
        key = uvloop.run(make_bots(settings.redis_url or ""))
        if "routes" in parts:
            routes.show(routes.measure(settings, key))
        if "instructions" in parts:
            instructions.show(instructions.measure(settings, key))
        uvloop.run(_in_process(settings, parts, psutil.Process(servers.redis_pid)))


if __name__ == "__main__":
    main(sys.argv[1:] or ["routes", "ledger", "archivist", "deliveries"])
