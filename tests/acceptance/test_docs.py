"""The documents say what is: their examples are played, and their outputs compared."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from app.main import create_app
from app.settings import Settings
from tests.acceptance.documented import Player, differences, examples, ready
from tests.acceptance.serving import Serving, folder, serving
from tests.receiver import Receiver

ROOT = Path(__file__).resolve().parents[2]
API_GUIDE = (ROOT / "docs" / "api.md").read_text()
README = (ROOT / "README.md").read_text()
_ROUTE = re.compile(r"^\| `([A-Z]+) (/\S+)`", re.MULTILINE)
_CURL = re.compile(r"^\$ (curl (?:.*\\\n)*.*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)


@pytest.fixture
def served() -> Iterator[Serving]:
    with folder() as var_dir, serving(var_dir) as running:
        ready(running)
        yield running


def test_the_api_guide_s_examples_are_what_a_server_answers(served: Serving) -> None:
    """Each request of docs/api.md, in its order, is answered as the guide says."""
    said_otherwise = []
    with Receiver() as receiver, served.client() as client:
        player = Player(client, hook=receiver.url("/hook"))
        for example in examples(API_GUIDE):
            documented = json.loads(example.answer)
            real = player.play(example, until=partial(_agrees, documented))
            found = differences(documented, real)
            said_otherwise += [f"{example.request.splitlines()[0]}: {difference}" for difference in found]

    assert len(examples(API_GUIDE)) > 20
    assert said_otherwise == [], "\n".join(said_otherwise)


def _agrees(documented: object, real: object) -> bool:
    return not list(differences(documented, real))


def test_the_api_guide_lists_every_route() -> None:
    """Neither a route that is not there, nor one that the guide forgets."""
    app = create_app(Settings(redis_url="redis://nowhere", database_url="postgresql://nowhere/db"))
    there = {(method.upper(), path) for path, operations in app.openapi()["paths"].items() for method in operations}

    assert set(_ROUTE.findall(API_GUIDE)) == there


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="needs curl and bash")
def test_the_readme_s_commands_print_what_it_shows(served: Serving) -> None:
    """Pasted one after the other, with the key that was printed."""
    commands = _CURL.findall(README)
    said_otherwise = []
    for command, output in commands:
        line = command.replace("http://127.0.0.1:8000", served.url).replace("$KEY", served.key)
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
        said_otherwise += [f"{command}: {found}" for found in differences(_shown(output), _shown(done.stdout))]

    assert len(commands) >= 4
    assert said_otherwise == [], "\n".join(said_otherwise)


def _shown(output: str) -> object:
    return json.loads(output) if output.startswith("{") else output
