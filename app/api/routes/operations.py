"""Routes for operators: is the process alive, is it ready, what does it count. They need no key."""

import asyncio
from collections.abc import Awaitable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel, Field
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.auth import AdminEngineDep, ClockDep, ConfigDep, PipeDep, SettingsDep
from app.api.responses import refuses
from app.archive.engine import schema_is_current
from app.clock import Clock
from app.config.follower import ConfigReplica
from app.errors import AdjournError, Forbidden, RateLimited, Unauthenticated
from app.live import keys
from app.live.pipe import Pipe
from app.live.server import durability_warnings
from app.metrics import flush
from app.settings import Settings

router = APIRouter(tags=["operations"])

OK = "ok"
_CHECK_TIMEOUT_S = 1.5
# A worker's heartbeat comes every second; without one for this long nothing closes on time.
_HEARTBEAT_FRESH_MS = 10_000


ReadinessStatus = Literal["ready", "degraded", "draining", "unready"]


class HealthView(BaseModel):
    """This process answers."""

    status: Annotated[Literal["ok"], Field(description="Always `ok`.")] = "ok"


class Checks(BaseModel):
    """`ok`, or what is wrong, for each part."""

    redis: Annotated[str, Field(description="Redis answers.", examples=["ok"])]
    durability: Annotated[str, Field(description="Redis is set to lose nothing that it should keep.", examples=["ok"])]
    configuration: Annotated[str, Field(description="This process follows changes of bots and keys.", examples=["ok"])]
    postgres: Annotated[str, Field(description="Postgres answers and has the newest schema.", examples=["ok"])]
    worker: Annotated[str, Field(description="A worker's heartbeat is fresh.", examples=["ok"])]
    archive: Annotated[str, Field(description="The archivist takes records: not too many are rejected.", examples=["ok"])]


class Readiness(BaseModel):
    """Whether this process can take entries."""

    status: Annotated[
        ReadinessStatus,
        Field(description="`degraded`: it takes entries, but a check failed. `draining`: it is shutting down."),
    ]
    checks: Annotated[Checks, Field(description="Each check.")]


@router.get("/healthz")
async def healthz() -> HealthView:
    """Whether this process answers; it asks no server."""
    return HealthView()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "It cannot take entries, or `strict` finds a fault"}})
async def readyz(
    request: Request,
    response: Response,
    *,
    config: ConfigDep,
    clock: ClockDep,
    engine: AdminEngineDep,
    pipe: PipeDep,
    settings: SettingsDep,
    strict: Annotated[bool, Query(description="Answer 503 whenever a check fails, not only if it stops ingest.")] = False,
) -> Readiness:
    """Whether this process can take entries: 503 if it cannot.

    Other faults are answered as `degraded` with 200: Postgres is down, the schema is not the newest, no worker's heartbeat is
    fresh, Redis keeps less than it should, changes of configuration do not arrive. Ingest goes on, and a load balancer that
    took every process out of service would stop it.
    """
    asked = {
        "redis": _redis(pipe),
        "durability": _durability(pipe, settings),
        "configuration": _configuration(config),
        "postgres": _postgres(engine),
        "worker": _worker(pipe, clock),
        "archive": _archive(pipe),
    }
    checks = dict(zip(asked, await asyncio.gather(*map(_checked, asked.values())), strict=True))
    draining = bool(getattr(request.app.state, "draining", False))
    taking = checks["redis"] == OK and config.loaded and not draining
    right = taking and all(check == OK for check in checks.values())
    response.status_code = 200 if right or (taking and not strict) else 503
    status: ReadinessStatus = "ready" if right else "degraded" if taking else "draining" if draining else "unready"
    return Readiness(status=status, checks=Checks(**checks))


@router.get("/metrics", response_class=Response, responses=refuses(Unauthenticated, Forbidden, RateLimited))
async def metrics(settings: SettingsDep, clock: ClockDep) -> Response:
    """Metrics for Prometheus, of all processes of this machine; read at most once a second."""
    page = _metrics_at(clock.now_ms() // 1000, settings.prometheus_multiproc_dir)
    return Response(page, media_type=CONTENT_TYPE_LATEST)


@lru_cache(maxsize=1)
def _metrics_at(_second: int, folder: Path | None) -> bytes:
    flush()
    registry = REGISTRY
    if folder is not None:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(folder))
    return generate_latest(registry)


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


async def _redis(pipe: Pipe) -> str:
    await pipe.call("PING")
    return OK


async def _durability(pipe: Pipe, settings: Settings) -> str:
    return "; ".join(await durability_warnings(pipe, appendfsync=settings.appendfsync)) or OK


async def _configuration(config: ConfigReplica) -> str:
    return config.warning or OK


async def _postgres(engine: AsyncEngine) -> str:
    async with engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        return OK if await schema_is_current(conn) else "the schema is not the newest: run `adjourn migrate`"


async def _worker(pipe: Pipe, clock: Clock) -> str:
    heartbeats = await pipe.call("HVALS", keys.HEARTBEATS)
    if not heartbeats:
        return "there has been no heartbeat of any worker"
    age_ms = clock.now_ms() - max(map(int, heartbeats))
    return OK if age_ms < _HEARTBEAT_FRESH_MS else f"the last heartbeat was {age_ms // 1000} s ago"


async def _archive(pipe: Pipe) -> str:
    why = await pipe.call("GET", keys.ARCHIVE_STOPPED)
    return OK if why is None else str(why, "utf-8", "replace")
