"""A start that fails prints one line on stderr, exits with 1, and leaves nothing running."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.settings import environment_with

ADJOURN = (sys.executable, "-m", "app.cli")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def _run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ADJOURN, *arguments],
        env=environment_with(**settings),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _assert_one_line(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    assert done.returncode == 1, done
    assert re.fullmatch(rf"adjourn: {pattern}\n", done.stderr), done.stderr


def _at_work_in(folder: Path) -> list[str]:
    return [
        process.info["name"]
        for process in psutil.process_iter(["name", "cwd"])
        if str(process.info["cwd"]).startswith(f"{folder}/")
    ]


def test_a_redis_that_does_not_answer(tmp_path: Path, closed_port: int) -> None:
    """The line names the setting and the address, and leaves the password out."""
    url = f"redis://:sesame@127.0.0.1:{closed_port}/0"
    done = _run("serve", "--port", "0", redis_url=url, database_url=None, var_dir=tmp_path)

    _assert_one_line(done, rf"REDIS_URL redis://:\*\*\*@127\.0\.0\.1:{closed_port}/0 cannot be used: .+")
    assert not (tmp_path / "postgres").exists()


def test_a_port_in_use(tmp_path: Path) -> None:
    """The servers that were started for nothing are stopped again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = _run("serve", "--port", str(port), redis_url=None, database_url=None, var_dir=tmp_path)

    _assert_one_line(done, rf"port {port} on 127\.0\.0\.1 is in use: .+")
    assert _at_work_in(tmp_path) == []


def test_migrating_twice_is_no_harm(database_url: str) -> None:
    """It says at which version the schema is."""
    first, second = (_run("migrate", database_url=database_url) for _ in range(2))

    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == second.stdout
    assert first.stdout.startswith("schema is at version ")


def test_no_argument_shows_what_there_is() -> None:
    """And a word that is none is refused by name."""
    shown, refused = _run(), _run("sevre")

    assert "serve" in shown.stdout + shown.stderr
    assert refused.returncode == 2
    assert "sevre" in refused.stderr


def test_a_check_of_nothing_fails(closed_port: int, redis_url: str) -> None:
    """A health check says no where nothing runs."""
    api = _run("check", "api", port=closed_port)
    worker = _run("check", "worker", redis_url=redis_url)

    _assert_one_line(api, rf"http://127\.0\.0\.1:{closed_port}/readyz does not answer: .+")
    _assert_one_line(worker, rf"no worker of {os.uname().nodename} has a heartbeat of the last 10 s")
