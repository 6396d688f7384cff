"""The requirement locks pin everything by hash, for both Pythons, and name no address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")


def _pins(lock: str) -> dict[str, tuple[Requirement, list[str]]]:
    joined = (ROOT / lock).read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    pins: dict[str, tuple[Requirement, list[str]]] = {}
    for line in lines:
        requirement, *hashes = line.split("--hash=")
        parsed = Requirement(requirement.strip())
        pins[canonicalize_name(parsed.name)] = (parsed, [text.strip() for text in hashes])
    return pins


def _wanted(*, dev: bool) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"] + (project["optional-dependencies"]["dev"] if dev else [])]


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


@pytest.mark.parametrize(("lock", "dev"), ((LOCKS[0], False), (LOCKS[1], True)))
def test_a_lock_satisfies_the_project(lock: str, dev: bool) -> None:  # noqa: FBT001
    """Every requirement of pyproject.toml is pinned within its bounds, for Python 3.11 and 3.12."""
    pins = _pins(lock)
    for wanted in _wanted(dev=dev):
        pinned, _ = pins[canonicalize_name(wanted.name)]
        version = str(pinned.specifier).removeprefix("==")
        assert wanted.specifier.contains(version, prereleases=True), wanted
        for python in ("3.11.9", "3.12.4"):
            environment = {"python_version": python[:4], "python_full_version": python}
            assert pinned.marker is None or pinned.marker.evaluate(environment), wanted


def test_both_locks_agree() -> None:
    """The tested versions are the ones that run."""
    run, dev = (_pins(lock) for lock in LOCKS)

    assert {name: str(pin.specifier) for name, (pin, _) in run.items()} == {name: str(dev[name][0].specifier) for name in run}


def test_the_project_can_be_built_from_the_lock() -> None:
    """The build needs setuptools, which a fresh environment lacks on 3.12: it is pinned like the rest."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pins = _pins(LOCKS[0])
    for text in build:
        wanted = Requirement(text)
        pinned, _ = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(str(pinned.specifier).removeprefix("=="))
