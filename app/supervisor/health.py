"""Health checks of containers: whether this machine's API or worker works."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

from redis import Redis
from redis.exceptions import RedisError

from app.embedded import urls_of
from app.errors import CannotStart
from app.live import keys
from app.settings import Settings
from app.supervisor.preflight import without_password

_TIMEOUT_S = 3.0
# A worker writes its heartbeat every second.
_FRESH_MS = 10_000


def check_api(settings: Settings) -> str:
    """The body of /readyz; raises `CannotStart` if it does not answer 200."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - connected to, not listened on
    url = f"http://{host}:{settings.port}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as refusal:
        msg = f"{url} answers {refusal.code}: {refusal.read().decode()}"
        raise CannotStart(msg) from None
    except OSError as error:
        msg = f"{url} does not answer: {error}"
        raise CannotStart(msg) from None


def check_worker(settings: Settings) -> str:
    """Return "ok" if a worker of this machine has a recent heartbeat; raises `CannotStart` if none has."""
    redis_url = settings.redis_url or urls_of(settings.var_dir)[0]
    try:
        with Redis.from_url(redis_url, socket_timeout=_TIMEOUT_S) as redis:
            seconds, _ = redis.time()
            heartbeats = redis.hgetall(keys.HEARTBEATS)
    except (RedisError, ValueError) as error:
        msg = f"REDIS_URL {without_password(redis_url)} cannot be used: {error}"
        raise CannotStart(msg) from None
    mine = [int(at_ms) for name, at_ms in heartbeats.items() if name.decode().startswith(f"{socket.gethostname()}-")]
    if not any(seconds * 1000 - at_ms < _FRESH_MS for at_ms in mine):
        msg = f"no worker of {socket.gethostname()} has a heartbeat of the last {_FRESH_MS // 1000} s"
        raise CannotStart(msg)
    return "ok"
