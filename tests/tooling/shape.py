"""`python -m tests.tooling.shape`: how large the parts of app/ are, and how much they import from one another."""

# ruff: noqa: T201  it prints

from __future__ import annotations

import ast
from collections import Counter

from tests.tooling.tree import modules

SHORT = 40


def imports() -> dict[str, set[str]]:
    """Each file of app/ that imports something, and the files of app/ that it imports."""
    files = modules()
    return {
        path: {name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) for name in _targets(node, files)}
        for path, text in files.items()
    }


def imports_across() -> Counter[tuple[str, str]]:
    """From folder and to folder: how many modules of the one import from the other."""
    pairs: Counter[tuple[str, str]] = Counter()
    for path, targets in imports().items():
        folder = path.rpartition("/")[0]
        pairs.update({(folder, target.rpartition("/")[0]) for target in targets} - {(folder, folder)})
    return pairs


def _targets(node: ast.ImportFrom, files: dict[str, str]) -> set[str]:
    """The files of app/ that an import names: modules of a package, or one module."""
    base = (node.module or "").replace(".", "/")
    within = {f"{base}/{alias.name}.py" for alias in node.names} & files.keys()
    return within or {f"{base}.py", f"{base}/__init__.py"} & files.keys()


def main() -> None:
    lines = {path: text.count("\n") for path, text in modules().items()}
    pairs = imports_across()
    print(f"files of app/            {len(lines)}")
    print(f"lines                    {sum(lines.values())}")
    print(f"files under {SHORT} lines     {sum(count < SHORT for count in lines.values())}")
    print(f"files over 400 lines     {sum(count > 400 for count in lines.values())}")
    print(f"imports across folders   {sum(pairs.values())} (a module and a folder it imports from count once)")
    print("\nlines by folder")
    folders: Counter[str] = Counter()
    for path, count in lines.items():
        folders[path.rpartition("/")[0]] += count
    for folder, count in sorted(folders.items()):
        inside = sum(path.rpartition("/")[0] == folder for path in lines)
        print(f"  {folder:24} {inside:4} files {count:6} lines")


if __name__ == "__main__":
    main()
