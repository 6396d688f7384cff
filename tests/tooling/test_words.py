"""Plain technical English, and one word for one thing: `python -m tests.tooling.words` has nothing to list."""

from __future__ import annotations

import ast

import pytest

from tests.tooling.tree import ROOT, packages
from tests.tooling.words import openers, retired_words, sentences, type_names


def test_no_retired_word_is_used() -> None:
    """Each had several meanings, or named no part of the system; the glossary has the words to use."""
    assert [f"{path}:{line}: {word}" for path, line, word in retired_words()] == []


def test_sentences_have_a_subject() -> None:
    """No sentence of comments, docstrings and descriptions opens with What, Who, Nobody and the like."""
    found, total = openers()

    assert total > 3_000
    assert found == [], [f"{path}:{line}: {sentence}" for path, line, sentence in found]


def test_a_type_name_has_one_meaning() -> None:
    """No two modules of app define a public type of the same name."""
    assert {name: paths for name, paths in type_names().items() if len(paths) > 1} == {}


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
