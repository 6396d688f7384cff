"""The web service: one app object that answers the two ingest routes itself and leaves all others to FastAPI."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from app import VERSION
from app.api import ingest
from app.api.access import AccessLog, PathTemplates, Watched, is_watched
from app.api.direct import DirectIngest
from app.api.errors import install_error_handlers
from app.api.middleware import PROBES, Ports, install_middleware, send_problem
from app.api.openapi import document_of, install_docs_page
from app.api.routes import ROUTERS
from app.console.app import install_console
from app.errors import NotFound
from app.log import configure_logging, logged_life
from app.resources import Resources, open_resources
from app.settings import Settings
from app.shares import LoopShares

_REQUESTS_EACH_ITERATION = 8  # of 1 ms; entries come before them
DESCRIPTION = "Real-time session tracking for chatbots. Bots post entries; sessions close on time; webhooks report it."


class Adjourn(FastAPI):
    """FastAPI with the ingest routes in front of it: same object, same port, none of its cost for each message."""

    access: AccessLog

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_watched(scope):
            await self._route(scope, receive, send)
            return
        with Watched(self.access, scope, send) as watched:
            await self._route(scope, receive, watched.send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self.state.ports.has(scope):
            await send_problem(NotFound("there is nothing here on this port"), scope, send)
            return
        route = ingest.route_of(scope)
        if route is not None:
            await ingest.serve(self.state.resources, route, scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] not in PROBES:
            await self.state.loop_shares.wait(dict(scope["headers"]).get(b"authorization", b"").decode("latin-1"))
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = document_of(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app; its lifespan opens the connections. Without `settings` the environment is read."""
    known = settings or Settings.load()
    configure_logging(known)
    app = Adjourn(
        title="Adjourn",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan(known),
        # A redirect would name the address that a proxy sees, with `http://`, and clients would send their key there.
        redirect_slashes=False,
        strict_content_type=False,
        # FastAPI's own pages load their scripts from elsewhere, and it would encode the document for each caller.
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.loop_shares = LoopShares(_REQUESTS_EACH_ITERATION)
    app.state.templates = PathTemplates(app)
    app.state.ports = Ports(known.operations_port)
    app.access = AccessLog(known.access_log)
    install_error_handlers(app)
    install_middleware(app, known)
    install_docs_page(app)
    for router in ROUTERS:
        app.include_router(router)
    install_console(app)
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings) as resources:
            with logged_life(settings):
                resources.config.log_loaded()
                app.state.resources = resources
                app.state.direct = DirectIngest(resources)
                yield
                await _finish(resources)

    return lifespan


async def _finish(resources: Resources) -> None:
    """Requests in flight are answered already; commit the commands that they left with the ledger."""
    await resources.ledger.stop()
