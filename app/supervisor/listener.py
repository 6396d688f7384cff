"""The listening socket that all API processes share, so that none is refused while processes are replaced."""

from __future__ import annotations

import errno
import socket

from app.errors import CannotStart

_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """Listen on `host` and `port`; 0 takes a free port. Raises `CannotStart` if that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        msg = f"cannot listen on {host}: {error.strerror}"
        raise CannotStart(msg) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotStart(_reason(error, host=host, port=port)) from None
    listener.settimeout(0)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL that reaches it from this machine."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{reachable}:{port}"


def _reason(error: OSError, *, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what uses it, or choose another with --port or PORT"
    if error.errno == errno.EACCES:
        return f"port {port} is reserved for root: choose one from 1024 with --port or PORT"
    return f"cannot listen on {host}:{port}: {error.strerror}"
