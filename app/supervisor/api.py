"""One API process: the app on an inherited socket.

A stop has this order, so that no client loses a reply:

    /readyz fails, replies close their connections -> drain delay -> no new connections -> clients close idle ones ->
    requests in flight are answered -> the app closes its own connections
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.settings import Settings
from app.supervisor.connection import Connection, ConnectionLimits, connection_within

# How long clients may take to close an idle connection before the server closes it.
_LINGER_S = 0.5
_POLL_S = 0.02
_OWN_FILES = 200  # connections to Redis and Postgres, libraries, metrics
_TICKS_A_SECOND = 10  # uvicorn's
_TICKS_BETWEEN_TRIMS = 5 * _TICKS_A_SECOND
# Only glibc has it. It keeps what was freed, 75 MB after 2,000 slow clients, until this gives back the pages: 1 ms each time.
_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def run_api(settings: Settings, *, descriptors: Sequence[int], ready: int | None = None) -> None:
    """Serve on the listening sockets `descriptors` until SIGTERM; write a byte to `ready` once requests are answered."""
    from app.main import create_app

    app = create_app(settings)
    server = ApiServer(server_config(app, settings), app=app, drain_delay_s=settings.drain_delay_s, ready=ready)
    server.run(sockets=[socket.socket(fileno=each) for each in descriptors])


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the app."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=connection_within(_limits(settings)),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=None if settings.tls_key_file is None else str(settings.tls_key_file),
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
    )


def _limits(settings: Settings) -> ConnectionLimits:
    """The limits of a connection. The process may open as many files as it is allowed to, and keeps some for its own servers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    spare = settings.max_connections if hard == resource.RLIM_INFINITY else max(1, hard - _OWN_FILES)
    return ConnectionLimits(
        head_s=settings.request_head_timeout_s,
        body_s=settings.request_body_timeout_s,
        reply_s=settings.reply_timeout_s,
        connections=min(settings.max_connections, spare),
    )


class ApiServer(uvicorn.Server):
    """Uvicorn with its own start (a byte to the supervisor) and stop (a drain)."""

    def __init__(self, config: uvicorn.Config, *, app: FastAPI, drain_delay_s: float, ready: int | None) -> None:
        super().__init__(config)
        self._app = app
        self._app.state.draining = False
        self._drain_delay_s = drain_delay_s
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._ready is not None:
            os.write(self._ready, b"1")
            os.close(self._ready)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_A_SECOND == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.end_if_slow()
        if counter % _TICKS_BETWEEN_TRIMS == 0 and _MALLOC_TRIM is not None:
            _MALLOC_TRIM(0)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; called by a signal. Without a loop there is nothing to drain yet."""
        del sig, frame
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for _ in range(int(_LINGER_S / _POLL_S)):
            if not self.server_state.connections:
                break
            await asyncio.sleep(_POLL_S)
        await super().shutdown(sockets)

    def _drain(self) -> None:
        if self._app.state.draining or self._loop is None:
            return
        self._app.state.draining = True
        # In the current headers, and in those that uvicorn builds again each second.
        closing = (b"connection", b"close")
        self.config.encoded_headers.append(closing)
        self.server_state.default_headers = [*self.server_state.default_headers, closing]
        for connection in self.server_state.connections:
            # A request in flight copied its headers when it arrived.
            cycle = getattr(connection, "cycle", None)
            if cycle is not None:
                cycle.keep_alive = False
        self._loop.call_later(self._drain_delay_s, self._exit)

    def _exit(self) -> None:
        self.should_exit = True
