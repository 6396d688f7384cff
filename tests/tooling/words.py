"""The words of the code: retired names, sentences that open with a question word, type names with two meanings.

`python -m tests.tooling.words` prints what `test_words.py` would refuse, by folder.
"""

# ruff: noqa: T201  it prints

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator

from tests.tooling.tree import modules, python_files, texts

# Each had several meanings or named nothing; docs/glossary.md has the words that replaced them.
RETIRED = (
    "turn",
    "Turn",
    "tell",
    "tells",
    "told",
    "telling",
    "Told",
    "Directory",
    "KnownBot",
    "KnownKey",
    "KnownEndpoint",
    "Ground",
    "aside",
    "Aside",
    "saving",
    "Share",
    "run_out",
    "Account",
    "keeping",
    "remembering",
    "expecting",
    "clearing",
    "Letter",
    "Trial",
    "width",
    "fate",
    "Held",
    "Found",
    "Taken",
    "doubtful",
    "somebody",
    "nobody",
    "Somebody",
    "Nobody",
    "forsaken",
)
# A terminal and a picture have a width, and a process runs under an account of the system.
_ELSEWHERE_FINE = {"width": ("app/cli.py", "app/console/", "app/demo/"), "Account": ("app/embedded/",)}
_RETIRED = re.compile(rf"\b({'|'.join(RETIRED)})\b")
_DIRECTIVE = re.compile(r"#\s*(noqa|type:|ruff:|!)")
OPENERS = ("What", "Who", "Whoever", "Whatever", "Nobody", "Those")
_OPENER = re.compile(rf"({'|'.join(OPENERS)})\b")
_DESCRIBING = ("description", "doc", "definition")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')`]*\s+(?=[\"'(`]*[A-Z])|\n\s*\n|\n\s*[-*] ")


def retired_words() -> Iterator[tuple[str, int, str]]:
    """Path, line and word, of code and documents."""
    for path, text in texts().items():
        if path.startswith(("app/", "docs/")):
            for number, line in enumerate(text.splitlines(), 1):
                for found in _RETIRED.findall(line):
                    if not path.startswith(_ELSEWHERE_FINE.get(found, ("-",))):
                        yield path, number, found


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, attributes' included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def descriptions(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each description of a field, a column or a metric."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.keyword) and node.arg in _DESCRIBING and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of each comment; lines that follow one another are one."""
    block: list[str] = []
    first = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or _DIRECTIVE.match(token.string):
            continue
        alone = not token.line[: token.start[1]].strip()
        if block and (not alone or token.start[0] != first + len(block)):
            yield first, "\n".join(block)
            block = []
        if not block:
            first = token.start[0]
        block.append(token.string.lstrip("# "))
    if block:
        yield first, "\n".join(block)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Each sentence of the docstrings, comments and descriptions, with the line on which its text begins."""
    for number, block in (*docstrings(text), *comments(text), *descriptions(text)):
        for sentence in _SENTENCE_END.split(block):
            stripped = sentence.strip(" \n\"'(`-*")
            if re.search(r"[a-z]{2}", stripped):
                yield number, stripped


def openers() -> tuple[list[tuple[str, int, str]], int]:
    """Sentences of all Python files that open with one of `OPENERS`, and how many sentences there are."""
    found: list[tuple[str, int, str]] = []
    total = 0
    for path, text in python_files().items():
        for number, sentence in sentences(text):
            total += 1
            if _OPENER.match(sentence):
                found.append((path, number, sentence))
    return found, total


def type_names() -> dict[str, list[str]]:
    """The public types of app/, classes and aliases at the top of a module, each with the modules that define it."""
    defined: dict[str, list[str]] = defaultdict(list)
    for path, text in modules().items():
        for node in ast.parse(text).body:
            for name in _names(node):
                if re.fullmatch(r"[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*", name):
                    defined[name].append(path)
    return defined


def _names(node: ast.stmt) -> list[str]:
    """A class, or an alias of a type; what a call returns is a value."""
    if isinstance(node, ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def main() -> None:
    folders: dict[str, list[str]] = defaultdict(list)
    for path, number, word in retired_words():
        folders[path.rpartition("/")[0]].append(f"{path}:{number}: {word}")
    found, total = openers()
    for path, number, sentence in found:
        folders[path.rpartition("/")[0]].append(f"{path}:{number}: opens with: {sentence[:80]!r}")
    for name, paths in type_names().items():
        if len(paths) > 1:
            folders[paths[0].rpartition("/")[0]].append(f"type {name} in {', '.join(paths)}")
    for folder, lines in sorted(folders.items()):
        print(f"{folder}: {len(lines)}")
        for line in lines:
            print(f"  {line}")
    print(f"sentences that open with {', '.join(OPENERS)}: {len(found)} of {total}, {100 * len(found) / total:.2f} %")


if __name__ == "__main__":
    main()
