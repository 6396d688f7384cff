"""The Dockerfile and docker-compose.yml hold what they promise, as far as it can be read without running them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
INSTRUCTIONS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN", "STOPSIGNAL",
    "USER", "VOLUME", "WORKDIR",
}  # fmt: skip


def _instructions() -> list[tuple[str, str]]:
    joined = DOCKERFILE.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_dockerfile_knows_only_instructions() -> None:
    """A misspelt word would be found at the first build only."""
    assert {word for word, _ in _instructions()} <= INSTRUCTIONS


def test_the_image_is_built_in_two_stages_and_runs_without_root() -> None:
    """The stage that builds is not the one that runs, and the one that runs has no rights."""
    words = [word for word, _ in _instructions()]
    last_stage = _instructions()[len(words) - words[::-1].index("FROM") - 1 :]
    users = [rest for word, rest in last_stage if word == "USER"]

    assert words.count("FROM") == 2
    assert users
    assert users[-1] not in {"root", "0"}
    assert any(word == "HEALTHCHECK" for word, _ in last_stage)


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    """Each source exists, and `.dockerignore`, which begins with all, lets it through."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for word, rest in _instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }

    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_no_password_has_a_default() -> None:
    """Compose refuses to start until one is set, and none stands in the file."""
    used = re.findall(r"\$\{(\w*PASSWORD\w*)([^}]*)\}", COMPOSE_TEXT)
    given = re.findall(r"^\s*\w*PASSWORD: *(?!\$\{)(\S+)", COMPOSE_TEXT, re.MULTILINE)

    assert used
    assert all(rest.startswith(":?") for _, rest in used)
    assert given == []
    assert re.search(r"://[^/\s]*:[^/\s]*@", COMPOSE_TEXT) is None


def test_redis_keeps_everything() -> None:
    """Every write is on disk before it is acknowledged, nothing is evicted, and the data has a volume."""
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))

    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert re.fullmatch(r"\$\{REDIS_MAXMEMORY:-[1-9]\d*gb\}", options["--maxmemory"])
    assert SERVICES["redis"]["volumes"] == ["redis:/data"]


def test_every_service_is_watched_and_starts_after_what_it_needs() -> None:
    """Each has a health check of its own or the image's, and waits for conditions that exist."""
    for name, service in SERVICES.items():
        assert "healthcheck" in service or service.get("image") == "adjourn", name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in SERVICES, name
            ends = SERVICES[needed].get("restart") == "no"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")
    for volume in COMPOSE["volumes"]:
        assert any(volume in str(service.get("volumes")) for service in SERVICES.values()), volume


def test_few_services_have_a_port_and_only_on_this_machine() -> None:
    """Redis and Postgres are not reachable from outside, nor is the worker; Grafana is on this machine, where it is asked for."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"api": ["127.0.0.1:8000:8000"], "grafana": ["127.0.0.1:3000:3000"]}


def test_the_services_run_commands_that_exist() -> None:
    """Each command of ours is known to `adjourn --help`."""
    shown = subprocess.run(
        [sys.executable, "-m", "app.cli", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    for name in ("migrate", "api", "worker"):
        assert f" {SERVICES[name]['command'][0]} " in shown


@pytest.mark.timeout(60)
def test_an_installation_holds_scripts_and_migrations(tmp_path: Path) -> None:
    """A wheel, which the image installs, carries more than Python modules."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("app", "migrations"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for folder in ("app", "migrations")
        for pattern in ("*.py", "*.lua", "*.html", "*.css", "*.js")
        for path in (ROOT / folder).rglob(pattern)
    }

    assert wanted <= packed
