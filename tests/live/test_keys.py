"""Every key in Redis has one home, which says its type, writer, life and growth."""

import ast
from pathlib import Path

import pytest

import app
from app.domain.strand import Strand
from app.live import keys

APP = Path(app.__file__).parent
KEYS = Path(keys.__file__)
SAID = ("Type:", "Writer:", "Life:", "Growth:")
SPELLING = "adj:"


def documented() -> dict[str, str]:
    """Each constant and function of `keys` that spells a key, and its documentation."""
    found: dict[str, str] = {}
    body = ast.parse(KEYS.read_text()).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and _spells(node):
            found[node.name] = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign) and _spells(node.value):
            text = following.value if isinstance(following, ast.Expr) else None
            found[ast.unparse(node.targets[0])] = text.value if isinstance(text, ast.Constant) else ""  # type: ignore[assignment]
    return found


def _spells(node: ast.AST) -> bool:
    return any(
        isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value.startswith(SPELLING)
        for part in ast.walk(node)
    )


def test_keys_are_found() -> None:
    assert {"SHARDS", "CONFIG", "state", "messages", "due", "live", "events", "counts"} <= documented().keys()


@pytest.mark.parametrize("name", documented())
def test_a_key_says_its_type_writer_life_and_growth(name: str) -> None:
    said = documented()[name]

    assert [word for word in SAID if said.count(word) != 1] == []


def test_no_other_file_spells_a_key() -> None:
    files = [path for kind in ("*.py", "*.lua") for path in APP.rglob(kind) if path != KEYS]
    spelling = [
        str(path.relative_to(APP)) for path in files if f'"{SPELLING}' in (text := path.read_text()) or f"'{SPELLING}" in text
    ]

    assert len(files) > 100
    assert spelling == []


def test_keys_of_a_conversation_share_a_slot() -> None:
    strand = Strand("shop", "web:ann")
    named = [
        keys.state(3, keys.member(strand)),
        keys.messages(3, "0199"),
        keys.due(3),
        keys.due(3, "shop"),
        keys.live(3, "shop"),
        keys.events(3),
        keys.counts(3),
    ]

    assert {name.partition("{")[2].partition("}")[0] for name in named} == {"3"}
    assert len(set(named)) == len(named)
