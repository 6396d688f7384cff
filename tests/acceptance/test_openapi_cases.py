"""Requests generated from the OpenAPI document, with every kind of key, against a running Adjourn: by schemathesis, all checks.

No server error, no answer that the document does not describe, no invalid request accepted, no valid one refused. The document is
the whole of the test: a new route is in it. `make fuzz` runs the long form.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import environment_with
from tests.acceptance.openapi_hooks import BOT, OWN_KEYS
from tests.acceptance.system import ROOT, Running, system

CONFIG = """
hooks = "tests.acceptance.openapi_hooks"
request-timeout = 20.0
max-stream-events = 1
continue-on-failure = true
warnings = false
[cache]
enabled = false
[generation]
database = "none"
no-shrink = true
[checks.positive_data_acceptance]
# 412 and 428 answer a version that is another by now.
expected-statuses = ["2xx", "304", "401", "403", "404", "409", "412", "428"]
[[operations]]
include-path = "/v1/live/events"
request-timeout = 0.5
"""
KINDS = ("admin", "admin of one bot", "ingest", "read", "none", "revoked")
ALL = ["admin", "read", "ingest"]
NO_LIMIT = {"rate_requests": 0, "rate_entries": 0, "rate_bytes": 0, "max_bots": 100_000, "max_keys": 100_000}


@pytest.fixture
def running(redis_url: str, database_url: str) -> Iterator[Running]:
    with system(redis_url=redis_url, database_url=database_url, **NO_LIMIT) as made:
        yield made


@pytest.fixture
def keys(running: Running) -> dict[str, str]:
    """A key of each kind, on an installation with some data. Their ids are in the environment of the hooks."""
    headers = {"authorization": f"Bearer {running.key}"}
    with httpx.Client(base_url=running.url, headers=headers, timeout=60, trust_env=False) as client:

        def made(path: str, body: object) -> Any:  # noqa: ANN401 - any JSON
            reply = client.post(path, json=body)
            assert reply.is_success, reply.text
            return reply.json()

        made("/v1/bots", {"id": BOT})
        made(f"/v1/bots/{BOT}/endpoints", {"url": "http://127.0.0.1:9999/"})
        for text in ("closes this session", "opens the next one"):
            session = made(f"/v1/bots/{BOT}/messages", {"user_id": "ann", "role": "user", "text": text, "message_id": text})
            made(f"/v1/sessions/{session['session_id']}/close", None)
        scopes = {"admin": ALL, "admin of one bot": ALL, "ingest": ["ingest"], "read": ["read"], "revoked": ALL}
        rows = {
            kind: made("/v1/keys", {"name": kind, "scopes": each, "bots": [BOT] if kind == "admin of one bot" else None})
            for kind, each in scopes.items()
        }
        assert client.delete(f"/v1/keys/{rows['revoked']['id']}").is_success
    return {kind: row["key"] for kind, row in rows.items()} | {"none": "", OWN_KEYS: " ".join(row["id"] for row in rows.values())}


def report_of(running: Running, keys: dict[str, str], kind: str, tmp_path: Path, *options: str) -> Any:  # noqa: ANN401 - any JSON
    """The findings of schemathesis with one kind of key."""
    config = tmp_path / "schemathesis.toml"
    bearer = f'[auth.openapi]\nHTTPBearer = {{ bearer = "{keys[kind]}" }}\n' if keys[kind] else ""
    config.write_text(CONFIG + bearer)
    report = tmp_path / "report.json"
    command = [f"{Path(sys.executable).parent}/schemathesis", f"--config-file={config}", "run", f"{running.url}/openapi.json"]
    outputs = ["--checks", "all", "--report", "json", "--report-json-path", str(report), "--no-color"]
    environment = environment_with(**{OWN_KEYS: keys[OWN_KEYS], "PYTHONPATH": ROOT})
    done = subprocess.run([*command, *outputs, *options], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)

    assert report.exists(), done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert (found["failures"], found["errors"]) == ([], []), done.stdout
    assert found["complete"], done.stdout
    return found


@pytest.mark.timeout(300)  # a busy machine
def test_each_route_answers_as_documented(running: Running, keys: dict[str, str], tmp_path: Path) -> None:
    """The examples of the document and a few generated requests for each route, with a key for everything."""
    found = report_of(running, keys, "admin", tmp_path, "--phases", "examples,fuzzing", "--max-examples", "2", "--seed", "1")

    assert found["operations"]["tested"] == found["operations"]["selected"] > 70


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_generated_requests_are_answered_as_documented(running: Running, keys: dict[str, str], tmp_path: Path, kind: str) -> None:
    """All phases: examples, the limits of each schema, random requests, and sequences of requests."""
    found = report_of(running, keys, kind, tmp_path, "--max-examples", "10")

    sys.stdout.write(f"\n{kind}: {json.dumps(found['test_cases'])}\n")  # `make fuzz` shows it
