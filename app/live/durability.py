"""Whether Redis keeps what it is given as well as this deployment expects: asked of Redis, told at start and in `/readyz`."""

from collections.abc import Mapping

from redis.exceptions import ResponseError

from app.live.pipe import Pipe

# How soon what was acknowledged is on disk, the weakest first.
FSYNC = ("no", "everysec", "always")


async def shortcomings(pipe: Pipe, *, appendfsync: str) -> list[str]:
    """What is weaker than it should be, each in a sentence; empty too where Redis does not let its settings be read."""
    try:
        found = [await pipe.call("CONFIG", "GET", name) for name in ("maxmemory-policy", "appendonly", "appendfsync")]
    except ResponseError:
        return []
    return shortcomings_of({name.decode(): value.decode() for name, value in filter(None, found)}, appendfsync=appendfsync)


def shortcomings_of(settings: Mapping[str, str], *, appendfsync: str) -> list[str]:
    """The same of settings that were read. One that is missing is not found fault with."""
    told = []
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        told.append(f"maxmemory-policy is {policy}: open sessions are thrown away when memory is short; set it to noeviction")
    if settings.get("appendonly", "yes") != "yes":
        told.append("appendonly is off: all open sessions are lost with the process; set it to yes")
    elif FSYNC.index(settings.get("appendfsync", "always")) < FSYNC.index(appendfsync):
        told.append(f"appendfsync is {settings['appendfsync']}, and {appendfsync} is expected (APPENDFSYNC): less is kept")
    return told
