"""The repository as the guards of this folder see it: its files, its packages, its documents."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"
DOCS = ROOT / "docs"

_FOLDERS = ("app", "bench", "docs", "migrations", "tests", ".ci")
_IN_ROOT = ("*.md", "*.toml", "*.yml", "Makefile", "Dockerfile", ".env.example", ".gitignore", ".dockerignore")
_TEXT = {".py", ".md", ".lua", ".html", ".css", ".js", ".mako", ".json", ""}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def texts() -> dict[str, str]:
    """Every text file of the project, by its path from the root."""
    top = [path for pattern in _IN_ROOT for path in ROOT.glob(pattern)]
    below = [path for folder in _FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in _TEXT]
    return {relative(path): path.read_text() for path in sorted([*top, *below]) if "__pycache__" not in path.parts}


def python_files() -> dict[str, str]:
    return {path: text for path, text in texts().items() if path.endswith(".py")}


def modules() -> dict[str, str]:
    """The Python files of `app`, by their path from the root."""
    return {path: text for path, text in python_files().items() if path.startswith("app/")}


def documents() -> dict[str, str]:
    return {path: text for path, text in texts().items() if path.endswith(".md")}


def packages() -> set[str]:
    """The packages of `app`, itself included, as paths."""
    return {path.rpartition("/")[0] for path in modules() if path.endswith("__init__.py")}
