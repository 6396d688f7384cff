"""`adjourn keys`: keys are made, shown once, listed without being shown, and taken back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import environment_with


class CommandLine:
    """`adjourn keys` on the servers of a test."""

    def __init__(self, **settings: object) -> None:
        self._environment = environment_with(**settings)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "app.cli", "keys", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


@pytest.fixture
def keys(redis_url: str, database_url: str) -> CommandLine:
    return CommandLine(redis_url=redis_url, database_url=database_url)


def _ids(listed: str) -> list[str]:
    return [line.split()[0] for line in listed.splitlines()[1:] if line.strip()]


def test_a_key_is_printed_alone_and_once(keys: CommandLine) -> None:
    """A script can take it as it is; the list shows its beginning only."""
    made = keys("create", "--name", "script", "--scope", "ingest", "--scope", "read")
    listed = keys("list").stdout

    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("adj_")
    assert key not in listed
    assert key[:10] in listed
    assert "ingest,read" in listed


def test_a_key_can_be_revoked_once(keys: CommandLine) -> None:
    """The second time there is nothing to revoke, and that is an error."""
    keys("create", "--name", "short-lived")
    key_id = _ids(keys("list").stdout)[0]
    first, second = keys("revoke", key_id), keys("revoke", key_id)

    assert (first.returncode, second.returncode) == (0, 1)
    assert second.stderr == f"adjourn: there is no valid key with the id {key_id}\n"


@pytest.mark.parametrize("named", ("nope", "adj_Q1SINa", "'"))
def test_an_invalid_id_is_refused(keys: CommandLine, named: str) -> None:
    """The beginning of a key, perhaps, which stands beside the id in the list; no trace."""
    refused = keys("revoke", named)

    assert refused.returncode == 2
    assert "UUID" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_key_for_an_unknown_bot_is_refused(keys: CommandLine) -> None:
    """A misspelt name would be a key that opens nothing."""
    refused = keys("create", "--name", "x", "--bot", "unknown")

    assert (refused.returncode, refused.stderr) == (1, "adjourn: there is no bot 'unknown'\n")
    assert _ids(keys("list").stdout) == []


def test_a_scope_is_one_of_three(keys: CommandLine) -> None:
    """Another word is refused by name."""
    refused = keys("create", "--name", "x", "--scope", "root")

    assert refused.returncode == 2
    assert "root" in refused.stderr


def test_keys_are_made_while_redis_is_away(database_url: str) -> None:
    """The key is made; a worker publishes it later."""
    keys = CommandLine(redis_url="unix:///nowhere/redis.sock", database_url=database_url)
    made = keys("create", "--name", "early")

    assert made.returncode == 0
    assert made.stdout.startswith("adj_")
    assert "not published" in made.stderr


def test_without_servers_it_says_where_none_run(tmp_path: Path) -> None:
    """With no URL set, the servers of VAR_DIR are meant, and they may not run."""
    refused = CommandLine(redis_url=None, database_url=None, var_dir=tmp_path)("list")

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"adjourn: nothing runs on {tmp_path}: start `adjourn serve`")
