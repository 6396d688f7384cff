"""The parts of a process's resources that routes ask for: each route names only what it uses."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, cast

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine

from app.api.auth import Principal
from app.clock import Clock
from app.closing.sweep import Sweep
from app.config.change import ConfigChange
from app.config.follower import ConfigReplica
from app.config.records import BotConfig
from app.live.ledger import Ledger
from app.live.pipe import Pipe
from app.live.sandbox import SandboxClocks
from app.live.user_variables import UserVariables
from app.live.view import LiveView
from app.queries.sessions import Sessions
from app.resources import Resources
from app.settings import Settings

OwnTime = Callable[[BotConfig], Awaitable[int | None]]
"""The instant of a command to a bot in its own time; None for a bot that goes by Redis's clock."""
Changing = Callable[[Principal], AbstractAsyncContextManager[ConfigChange]]
"""Opens the transaction of one change of configuration."""


def resources_of(request: Request) -> Resources:
    return cast("Resources", request.app.state.resources)


def _part(name: str) -> Any:  # noqa: ANN401 - what FastAPI's own Depends gives
    async def part(request: Request) -> object:
        return getattr(resources_of(request), name)

    return Depends(part)


async def _sessions(request: Request) -> Sessions:
    resources = resources_of(request)
    return Sessions(live=resources.live, engine=resources.engine, config=resources.config)


async def _changing(request: Request) -> Changing:
    return lambda principal: resources_of(request).writer.changing(principal.actor)


ClockDep = Annotated[Clock, _part("clock")]
ConfigDep = Annotated[ConfigReplica, _part("config")]
EngineDep = Annotated[AsyncEngine, _part("engine")]
LedgerDep = Annotated[Ledger, _part("ledger")]
LiveDep = Annotated[LiveView, _part("live")]
OwnTimeDep = Annotated[OwnTime, _part("sandbox_ms")]
PipeDep = Annotated[Pipe, _part("pipe")]
SandboxesDep = Annotated[SandboxClocks, _part("sandboxes")]
SettingsDep = Annotated[Settings, _part("settings")]
UserVariablesDep = Annotated[UserVariables, _part("user_variables")]
SweepDep = Annotated[Sweep, _part("sweep")]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
ChangingDep = Annotated[Changing, Depends(_changing)]
