"""The product as several processes on the run's servers: `adjourn serve`, and workers beside the one that it starts."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.settings import environment_with
from tests.acceptance.serving import STOP_S, folder, serving

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Running:
    """Where it listens, and a key for everything."""

    url: str
    key: str

    def client(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, trust_env=False)


@contextmanager
def system(*, redis_url: str, database_url: str, api_workers: int = 1, workers: int = 1, **more: object) -> Iterator[Running]:
    """Run it all until the end of the block. Its patience is long: this machine may be busy with other things."""
    settings: dict[str, Any] = {
        "redis_url": redis_url,
        "database_url": database_url,
        "webhook_allow_private": "true",
        "redis_timeout_s": 10,
        "ingest_deadline_s": 20,
        **more,
    }
    with folder() as var_dir, serving(var_dir, "--workers", str(api_workers), **settings) as served:
        key = _key(settings)
        others = [_worker(var_dir, settings) for _ in range(workers - 1)]
        try:
            yield Running(served.url, key)
        finally:
            for process in others:
                process.send_signal(signal.SIGTERM)
            for process in others:
                assert process.wait(STOP_S) == 0


def _key(settings: dict[str, object]) -> str:
    command = [sys.executable, "-m", "app.cli", "keys", "create", "--name", "test"]
    environment = environment_with(**settings)
    made = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return made.stdout.strip()


def _worker(var_dir: Path, settings: dict[str, object]) -> subprocess.Popen[bytes]:
    environment = environment_with(var_dir=var_dir, **settings)
    return subprocess.Popen([sys.executable, "-m", "app.cli", "worker"], env=environment, cwd=ROOT)


async def asked(
    client: httpx.AsyncClient, method: str, path: str, json: object = None, *, params: Mapping[str, str] | None = None
) -> Json:
    """The answer's JSON; fails with the problem if it is none of success."""
    reply = await client.request(method, path, json=json, params=params)
    assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
    answer: Json = reply.json()
    return answer


async def pages(client: httpx.AsyncClient, path: str, name: str, **parameters: str) -> AsyncIterator[Json]:
    """All items of a list, by following its cursors."""
    while True:
        page = await asked(client, "GET", path, params=parameters)
        for item in page[name]:
            yield item
        if page["next"] is None:
            return
        parameters["cursor"] = page["next"]


async def until(met: Callable[[], Awaitable[bool]], *, within_s: float = 60) -> None:
    """Poll until it is so; fails if it is not in time."""
    give_up = time.monotonic() + within_s
    while not await met():
        assert time.monotonic() < give_up, f"it was not so within {within_s} s"
        await asyncio.sleep(0.1)
