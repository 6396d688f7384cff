"""The OpenAPI document is complete and right: what it says is so, and clients that are generated from it work."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import httpx
import pytest
import re2
from fastapi import FastAPI

from app.api.openapi import TAGS
from app.api.webhooks import EVENTS, TEST
from app.archive.deliveries import payload
from app.domain.records import Event, EventType
from app.domain.session_view import message_view
from tests.api.conftest import Client, Json
from tests.closed import closed_session

IDS = ("session_id", "endpoint_id", "key_id", "delivery_id", "event_id", "previous_session_id", "after_id", "continuation_of")


@pytest.fixture
def document(app: FastAPI) -> Json:
    return app.openapi()


def parts(part: Any, path: str = "") -> Iterator[tuple[str, Json]]:  # noqa: ANN401 - any JSON
    """Every object of the document, with its place."""
    if isinstance(part, dict):
        yield path, part
        for name, inner in part.items():
            yield from parts(inner, f"{path}/{name}")
    elif isinstance(part, list):
        for at, inner in enumerate(part):
            yield from parts(inner, f"{path}/{at}")


def properties(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Place, name and schema of every property."""
    for path, part in parts(document):
        if isinstance(part.get("properties"), dict) and not path.endswith("/properties"):
            for name, schema in part["properties"].items():
                yield f"{path}/{name}", name, schema


def parameters(document: Json) -> Iterator[tuple[str, Json]]:
    for path, part in parts(document):
        if "in" in part and "schema" in part:
            yield f"{path} {part['name']}", part


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def of_components(schema: Json) -> bool:
    """Whether a schema refers to a component, which has examples of its own."""
    inner = [schema, schema.get("items", {}), *schema.get("anyOf", ())]
    return any("$ref" in part for part in inner)


def test_everything_is_described_with_an_example(document: Json) -> None:
    """Every property, parameter, component, operation and answer; an example unless a component has its own."""
    silent = [path for path, _, schema in properties(document) if not schema.get("description")]
    silent += [path for path, _, schema in properties(document) if not (schema.get("examples") or of_components(schema))]
    silent += [path for path, each in parameters(document) if not (each.get("description") and each["schema"].get("examples"))]
    silent += [name for name, schema in document["components"]["schemas"].items() if not schema.get("description")]
    for name, operation in operations(document):
        answers = operation["responses"].values()
        silent += [name] if not operation.get("description") else []
        silent += [name for answer in answers if answer["description"] in {"", "Successful Response", "Validation Error"}]

    assert silent == []


def test_instants_and_ids_say_that_they_are(document: Json) -> None:
    """`date-time` and `uuid`, in answers and in parameters."""
    plain = []
    for path, name, schema in [
        *properties(document),
        *((path, each["name"], each["schema"]) for path, each in parameters(document)),
    ]:
        formats = {part.get("format") for part in (schema, *schema.get("anyOf", ()))}
        if (name.endswith("_at") or name in {"at", "since", "now", "timestamp"}) and "date-time" not in formats:
            plain.append(path)
        if name in IDS and "uuid" not in formats:
            plain.append(path)

    assert plain == []


def test_every_pattern_compiles_by_re2(document: Json) -> None:
    """No look-ahead or other speciality of one language."""
    patterns = [part["pattern"] for _, part in parts(document) if isinstance(part.get("pattern"), str)]

    assert len(patterns) > 10
    for pattern in patterns:
        re2.compile(pattern)
    assert "(?!" not in json.dumps(document)


def test_no_answer_is_an_untyped_object(document: Json) -> None:
    """Every JSON answer is a component with properties."""
    untyped = []
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            schema = answer.get("content", {}).get("application/json", {}).get("schema")
            if schema is not None and "properties" not in document["components"]["schemas"].get(schema.get("$ref", "")[21:], {}):
                untyped.append(f"{name} {status}")

    assert untyped == []


def test_the_policy_and_its_parts_are_components(document: Json) -> None:
    """Each once, with the limits of the domain's types."""
    schemas = document["components"]["schemas"]
    inlined = [path for path, name, _ in properties(document) if name == "inactivity_clock" and path.count("/") > 5]

    assert {"Policy", "PolicyToSave", "Overrides", "ClosureMessage", "Reminder"} <= schemas.keys()
    assert inlined == []
    assert (schemas["Policy"]["properties"]["inactivity_minutes"]["maximum"]) == 60
    assert (schemas["Overrides"]["properties"]["inactivity_minutes"]["maximum"]) == 1440


def test_tags_have_texts_and_ingest_comes_first(document: Json) -> None:
    """Every tag that an operation has, and no other."""
    used = {tag for _, operation in operations(document) for tag in operation["tags"]}

    assert next(iter(document["paths"])) == "/v1/bots/{bot}/messages"
    assert next(tag["name"] for tag in document["tags"]) == "ingest"
    assert used == TAGS.keys()
    assert document["servers"]


def test_every_event_has_a_webhook_that_describes_its_body(document: Json) -> None:
    """A body that is really sent has each field of the model and no other."""
    one = closed_session(1)
    more: dict[str, Json] = {
        "session.reminder": {"text": "Still there?", "language": "default"},
        "session.closure_message": {"text": "Bye!", "language": "default"},
        "session.updated": {"message": message_view(one.messages[0])},
    }

    assert document["webhooks"].keys() == {*get_args(EventType), TEST}
    for event in get_args(EventType):
        body = payload(Event(event, one.session, 1, "K07", more.get(event)), one.strand)
        EVENTS[event].model_validate_json(body, extra="forbid")


@pytest.fixture
def generated(document: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a Python package of the document, without a warning."""
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    command = [f"{programs}/openapi-python-client", "generate", "--path", "openapi.json", "--output-path", "adjourn_client"]
    done = subprocess.run(
        [*command, "--meta", "none", "--fail-on-warning"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    return tmp_path / "adjourn_client"


@pytest.mark.timeout(600)  # it runs programs that take long on a busy machine
def test_a_generated_python_client_passes_mypy(generated: Path) -> None:
    """All but `client.py`, which is the generator's own text and the same for any document."""
    command = [sys.executable, "-m", "mypy", "--config-file=", "--no-incremental", generated.name]
    done = subprocess.run(command, cwd=generated.parent, capture_output=True, text=True, timeout=300, check=False)
    faults = [
        line for line in done.stdout.splitlines() if ": error:" in line and not line.startswith("adjourn_client/client.py:")
    ]

    assert re.search(r"checked \d{2,} source files", done.stdout), done.stdout
    assert faults == []


@pytest.mark.timeout(600)  # it runs programs that take long on a busy machine
async def test_a_generated_python_client_works(
    generated: Path, app: FastAPI, admin: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes a bot, posts entries, moves the clock, reads the closed session, and gets problems as such."""
    monkeypatch.syspath_prepend(generated.parent)
    models = importlib.import_module("adjourn_client.models")
    client = importlib.import_module("adjourn_client").AuthenticatedClient(base_url="http://test", token="")
    transport = httpx.ASGITransport(app)
    client.set_async_httpx_client(
        httpx.AsyncClient(transport=transport, base_url="http://test", headers={"authorization": admin.headers["authorization"]})
    )

    def operation(name: str) -> ModuleType:
        return importlib.import_module(f"adjourn_client.api.{name}")

    await operation("bots.create_bot").asyncio(client=client, body=models.NewBot(id="shop", sandbox=True))
    entry = models.Entry(
        user_id="ann",
        role=models.EntryRole("user"),
        text="hi",
        session_metadata=models.EntrySessionMetadataType0.from_dict({"n": 1}),
    )
    receipt = await operation("ingest.post_message").asyncio("shop", client=client, body=entry)
    batch = await operation("ingest.post_messages").asyncio("shop", client=client, body=[entry])
    await operation("sandbox.advance_clock").asyncio("shop", client=client, body=models.ClockAdvance(seconds=3600))
    session = await operation("sessions.read_session").asyncio(receipt.session_id, client=client)
    policy = await operation("policies.read_policy").asyncio("shop", client=client)
    absent = await operation("bots.read_bot").asyncio("none", client=client)

    assert (batch.accepted, batch.answers[0].session_id) == (1, receipt.session_id)
    assert (session.status, session.reason, session.entries) == ("closed", "inactivity", 2)
    assert session.closed_at == receipt.closes_at or session.closed_at > receipt.received_at
    assert policy.resolved.inactivity_minutes == 15
    assert (absent.status, absent.code) == (404, "not_found")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_typescript_types_compile(document: Json, tmp_path: Path) -> None:
    """By `tsc --strict`."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "package.json").write_text('{"private": true}')

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    installed = run(npm, "install", "--no-audit", "--no-fund", "openapi-typescript@7", "typescript@5")
    if installed.returncode:
        pytest.skip(f"npm cannot install the generator: {installed.stderr[-200:]}")
    made = run("node_modules/.bin/openapi-typescript", "openapi.json", "-o", "types.ts")
    checked = run("node_modules/.bin/tsc", "--noEmit", "--strict", "types.ts")

    assert made.returncode == 0, made.stderr
    assert "warn" not in (made.stdout + made.stderr).lower()
    assert checked.returncode == 0, checked.stdout
