"""What operators ask: is it alive, is it ready, what does it count."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.archive.migrate import head_matches
from app.errors import AdjournError
from app.live import keys
from app.live.server import durability_warnings
from app.resources import Resources

router = APIRouter(tags=["operations"])

OK = "ok"
_CHECK_TIMEOUT_S = 1.5
# A worker ticks every second; without a tick for this long nothing closes on time.
_TICK_FRESH_MS = 10_000


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process answers; it asks nobody else."""
    return {"status": OK}


@router.get("/readyz")
async def readyz(
    request: Request,
    response: Response,
    *,
    strict: Annotated[bool, Query(description="answer 503 for whatever is not right, not only for what stops ingest")] = False,
) -> dict[str, object]:
    """Whether this process can take entries: 503 where it cannot.

    A Postgres that is down, a schema that is not the newest, a worker that does not tick, a Redis that keeps less than it should,
    bots and keys of which nothing is heard are told as `degraded` with 200, since ingest goes on and taking every process out of
    service would stop it.
    """
    resources: Resources = request.app.state.resources
    names = ("redis", "durability", "configuration", "postgres", "worker")
    asked = (
        _redis(resources),
        _durability(resources),
        _configuration(resources),
        _postgres(resources),
        _worker(resources),
    )
    checks = dict(zip(names, await asyncio.gather(*map(_checked, asked)), strict=True))
    draining = bool(getattr(request.app.state, "draining", False))
    taking = checks["redis"] == OK and resources.config.loaded and not draining
    right = taking and all(check == OK for check in checks.values())
    response.status_code = 200 if right or (taking and not strict) else 503
    status = "ready" if right else "degraded" if taking else "draining" if draining else "unready"
    return {"status": status, "checks": checks}


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """What Prometheus scrapes; with several processes, of all of them."""
    resources: Resources = request.app.state.resources
    registry = REGISTRY
    if resources.settings.prometheus_multiproc_dir is not None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _checked(check: Awaitable[str]) -> str:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            return await check
    except TimeoutError:
        return "does not answer"
    except AdjournError as error:
        return error.detail
    except (SQLAlchemyError, OSError):
        return "cannot be reached"


async def _redis(resources: Resources) -> str:
    await resources.pipe.call("PING")
    return OK


async def _durability(resources: Resources) -> str:
    return "; ".join(await durability_warnings(resources.pipe, appendfsync=resources.settings.appendfsync)) or OK


async def _configuration(resources: Resources) -> str:
    return resources.config.warning or OK


async def _postgres(resources: Resources) -> str:
    async with resources.engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        return OK if await head_matches(conn) else "the schema is not the newest: run `adjourn migrate`"


async def _worker(resources: Resources) -> str:
    ticks = await resources.pipe.call("HVALS", keys.HEARTBEATS)
    if not ticks:
        return "no worker has ever ticked"
    age_ms = resources.clock.now_ms() - max(map(int, ticks))
    return OK if age_ms < _TICK_FRESH_MS else f"the last tick was {age_ms // 1000} s ago"
