"""The receivers of docs/webhooks.md pass closure messages on for a day, and none of them leads to a second one (S13)."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from app.live import keys
from app.settings import environment_with
from tests.acceptance.system import ROOT, Running, asked, pages, system, until

DOCUMENT = (ROOT / "docs" / "webhooks.md").read_text()
LANGUAGES = {"receiver.py": "python", "receiver.mjs": "javascript"}
SHARDS = 16
# A day: small steps while the session is open and closes, larger ones afterwards.
STEPS_MINUTES = (*[5] * 12, *[30] * 46)
START_S = 60
TRANSCRIPT = [("user", "Hello", False), ("bot", "Are you there?", False), ("bot", "Good-bye!", True)]
EVENTS = ["session.opened", "session.reminder", "session.closure_message", "session.closed", "session.updated"]
POLICY = {
    "closure_message": {"texts": {"default": "Good-bye!"}},
    "reminder": {"minutes": 5, "texts": {"default": "Are you there?"}},
}


@pytest.mark.parametrize("name", LANGUAGES)
async def test_a_day_has_one_message_and_one_closure_message(
    tmp_path: Path, redis_url: str, database_url: str, name: str
) -> None:
    """The relays of the reminder and of the closure message are entries of the one session, and open no other."""
    program = tmp_path / name
    program.write_text(_example(name))
    port, bot = _free_port(), f"polite-{LANGUAGES[name]}"
    with system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api, Redis.from_url(redis_url) as redis:
            secret = await _set_up(api, bot, port)
            with _receiver(program, running, secret=secret, port=port) as printed:
                said = await asked(api, "POST", f"/v1/bots/{bot}/messages", {"user_id": "ann", "role": "user", "text": "Hello"})
                for minutes in STEPS_MINUTES:
                    await asked(api, "POST", f"/v1/bots/{bot}/clock/advance", {"seconds": minutes * 60})
                    await until(lambda: _is_quiet(api, redis, bot))
            sessions = [session async for session in pages(api, "/v1/sessions", "sessions", bot=bot)]
            transcript = await asked(api, "GET", f"/v1/sessions/{said['session_id']}/messages")
            events = [row["event"] async for row in pages(api, "/v1/deliveries", "deliveries", bot=bot)]
            live = await asked(api, "GET", f"/v1/bots/{bot}/live")

    assert [session["id"] for session in sessions] == [said["session_id"]]
    assert live["sessions"] == []
    assert [(message["role"], message["text"], message["late"]) for message in transcript["messages"]] == TRANSCRIPT
    assert events.count("session.opened") == events.count("session.closure_message") == events.count("session.closed") == 1
    assert printed == ["to ann on web: Are you there?", "to ann on web: Good-bye!"]


def _example(name: str) -> str:
    """The program of that name in the document."""
    after = DOCUMENT.partition(f"\n`{name}` ")[2]
    found = re.search(rf"```{LANGUAGES[name]}\n(.*?)```", after, re.DOTALL)
    assert found, f"docs/webhooks.md has no {name}"
    return found[1]


def _command(program: Path) -> list[str]:
    if program.suffix == ".py":
        return [sys.executable, str(program)]
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so the receiver for Node.js was NOT run")
    return [node, str(program)]


@contextmanager
def _receiver(program: Path, running: Running, *, secret: str, port: int) -> Iterator[list[str]]:
    """Run the program until the end of the block; the list gets its output then."""
    printed: list[str] = []
    environment = environment_with(adjourn_url=running.url, adjourn_key=running.key, webhook_secret=secret, port=port)
    process = subprocess.Popen(_command(program), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        _wait_for(port, process)
        yield printed
    finally:
        process.terminate()
        printed += process.communicate(timeout=30)[0].splitlines()


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        assert process.poll() is None, "the receiver ended while it started"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    msg = f"the receiver does not listen within {START_S} s"
    raise AssertionError(msg)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def _set_up(api: httpx.AsyncClient, bot: str, port: int) -> str:
    """A sandbox bot with an endpoint at the receiver; returns the endpoint's secret."""
    await asked(api, "POST", "/v1/bots", {"id": bot, "name": bot, "sandbox": True, "clock_mode": "manual", "policy": POLICY})
    url = f"http://127.0.0.1:{port}/hook"
    return str((await asked(api, "POST", f"/v1/bots/{bot}/endpoints", {"url": url, "events": EVENTS}))["secret"])


async def _is_quiet(api: httpx.AsyncClient, redis: Redis, bot: str) -> bool:
    """Whether every event so far is archived and delivered."""
    waiting = [await redis.xlen(keys.events(shard)) for shard in range(SHARDS)]
    pending = await asked(api, "GET", "/v1/deliveries", params={"bot": bot, "status": "pending"})
    return sum(waiting) == 0 and pending["deliveries"] == []
