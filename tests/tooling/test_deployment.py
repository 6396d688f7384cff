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

from app.settings import Settings

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


DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "adjourn"
ALERTS = yaml.safe_load((ROOT / "observability" / "alerts.yml").read_text())["groups"]


def _rendered() -> list[dict[str, Any]]:
    """The objects of the chart. Its templates use values and the release's name alone, so that they can be rendered here."""
    given = {"Values": yaml.safe_load((CHART / "values.yaml").read_text()), "Release": {"Name": "shop"}}

    def value(found: re.Match[str]) -> str:
        node: Any = given
        for name in found[1].split("."):
            node = node[name]
        return str(node)

    texts = [re.sub(r"\{\{ \.([\w.]+) \}\}", value, path.read_text()) for path in sorted((CHART / "templates").iterdir())]
    assert not any("{{ " in text for text in texts), "the templates use values and the release's name alone"
    return [made for text in texts for made in yaml.safe_load_all(text)]


def _of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {made["metadata"]["name"]: made["spec"] for made in _rendered() if made["kind"] == kind}


def test_the_chart_has_each_part_once_with_its_budget_scaler_and_policy() -> None:
    """Names and selectors lead to pods that exist; a typing error would leave a part without protection."""
    pods = {name: spec["template"] for name, spec in _of_kind("Deployment").items()}
    labels = [pod["metadata"]["labels"] for pod in pods.values()]

    assert set(pods) == {"shop-api", "shop-worker"}
    for kind in ("PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"):
        assert set(_of_kind(kind)) == set(pods), kind
    selectors = [
        *(spec["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget") for spec in _of_kind(kind).values()),
        *(spec["podSelector"]["matchLabels"] for spec in _of_kind("NetworkPolicy").values()),
        *(spec["selector"] for spec in _of_kind("Service").values()),
    ]
    for selector in selectors:
        assert sum(selector.items() <= each.items() for each in labels) == 1, selector
    for name, spec in _of_kind("HorizontalPodAutoscaler").items():
        assert spec["scaleTargetRef"]["name"] == name
        assert 2 <= spec["minReplicas"] < spec["maxReplicas"]


def test_containers_of_the_chart_run_known_commands_without_rights() -> None:
    """Each has probes or ends, names its secrets by reference alone, and sets settings that exist."""
    shown = subprocess.run(
        [sys.executable, "-m", "app.cli", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    specs = {**_of_kind("Deployment"), **_of_kind("Job")}
    (config,) = (made["data"] for made in _rendered() if made["kind"] == "ConfigMap")

    assert {name.lower() for name in config} <= set(Settings.model_fields)
    Settings(**{name.lower(): value for name, value in config.items()})
    for name, spec in specs.items():
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert f" {container['args'][0]} " in shown
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert {"secretRef": {"name": "adjourn"}} in container["envFrom"]
        assert "env" not in container
        if name in _of_kind("Deployment"):
            assert "livenessProbe" in container
            assert pod["terminationGracePeriodSeconds"] > float(config["DRAIN_DELAY_S"]) + 2 * Settings().shutdown_grace_s + 5


@pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")
def test_helm_renders_the_chart_to_the_same_objects() -> None:
    made = subprocess.run(["helm", "template", "shop", str(CHART)], capture_output=True, text=True, check=True).stdout

    def by_name(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(objects, key=lambda each: (each["kind"], each["metadata"]["name"]))

    assert by_name([each for each in yaml.safe_load_all(made) if each]) == by_name(_rendered())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", sorted(path.name for path in (DEPLOY / "systemd").iterdir()))
def test_a_unit_of_systemd_is_right(unit: str, tmp_path: Path) -> None:
    """Systemd knows every line. The command is replaced, since it must exist to be accepted."""
    text = (DEPLOY / "systemd" / unit).read_text()
    copy = tmp_path / unit
    copy.write_text(text.replace("/opt/adjourn/bin/adjourn", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)


def test_every_alert_has_its_section_in_the_runbook() -> None:
    """With its meaning, the first look and the cure; and the runbook has no alert that there is not."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.MULTILINE | re.DOTALL))
    alerts = [rule["alert"] for group in ALERTS for rule in group["rules"]]

    assert list(sections) == alerts
    for name, text in sections.items():
        assert re.findall(r"^\*\*(.+?):\*\*", text, re.MULTILINE) == ["Meaning", "First look", "Cure"], name
