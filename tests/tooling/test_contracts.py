"""A contract that import-linter cannot express: the domain may import the standard library and one package, by name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DOMAIN = Path(__file__).resolve().parents[2] / "app" / "domain"
# The domain is pure, so it needs none of these.
IMPURE = {"asyncio", "logging", "os", "random", "secrets", "socket", "subprocess", "threading", "time"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


@pytest.mark.parametrize("path", sorted(DOMAIN.rglob("*.py")), ids=lambda path: path.name)
def test_the_domain_imports_the_standard_library_and_msgspec_alone(path: Path) -> None:
    """No I/O, no clock and no chance come in by an import."""
    for name in _imports(path):
        top = name.partition(".")[0]
        ours = name == "app.domain" or name.startswith("app.domain.")
        assert ours or top == "msgspec" or top in sys.stdlib_module_names - IMPURE, name
