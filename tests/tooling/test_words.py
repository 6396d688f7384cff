"""Plain technical English, and one word for one thing (`python -m tests.tooling.words` lists all faults)."""

from __future__ import annotations

import ast

import pytest

from tests.tooling.tree import ROOT, packages
from tests.tooling.words import sentences


@pytest.mark.parametrize("package", sorted(packages()))
def test_a_package_says_what_it_owns(package: str) -> None:
    """Its docstring says what it owns, promises and refuses; a reader meets it first."""
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))

    assert docstring, "write what the package owns, promises and refuses"
    assert len(docstring) > 80, docstring


def test_sentences_are_told_apart() -> None:
    """A comment of several lines is one text, a trailing one is its own, and directives are none."""
    text = '"""One. Two."""\n\n# Three goes\n# on. Four.\nx = 1  # five is here\ny = 2  # noqa: X1\n'

    assert [sentence for _, sentence in sentences(text)] == ["One.", "Two.", "Three goes\non.", "Four.", "five is here"]
