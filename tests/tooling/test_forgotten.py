"""A change that is made in one place and forgotten in the next fails here (CONTRIBUTING.md, "Where a change goes")."""

from __future__ import annotations

import ast
import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from app.api import routes
from app.archive.session_reads import SessionFilter
from app.archive.tables import sessions
from app.domain.entry import EntryType
from app.domain.policy.model import Policy
from app.domain.records import EventType, Outcome, Reason
from app.domain.session_view import public_fields
from app.main import create_app
from app.settings import Settings
from tests.tooling.shape import imports
from tests.tooling.tree import DOCS, ROOT, modules, texts

RULES = (DOCS / "rules.md").read_text()

# Settings that say what is counted and billed, not where a session begins and ends.
NO_BOUNDARY = {"requires_bot", "billing_block_minutes", "transcript", "redact_masks"}
# Columns of a session by which lists are filtered under another name: a list of bots, a tag, a key, an end of a range.
BY_OTHER_FILTERS = {"bot_id", "tags", "session_metadata", "opened_at", "closed_at", "active_ms"}
# Columns that are read or summed, and that no list is filtered by.
NOT_FILTERED = {
    *("id", "thread", "opening_rule", "closing_rule", "closed_by", "continuation_of", "detail", "archived_at", "intents"),
    *("entries", "user_entries", "bot_entries", "agent_entries", "system_entries", "late_entries", "interactions"),
    *("billing_sessions", "first_response_ms", "idle_ms"),
}


def used_names() -> set[str]:
    """Every name that the code reads, imports apart; a type may also be named in quotes."""
    code = [text for path, text in texts().items() if path.endswith(".py") and path.startswith(("app/", "migrations/", "bench/"))]
    return {name for text in code for node in ast.walk(ast.parse(text)) if (name := _name(node))}


def _name(node: ast.AST) -> str | None:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return node.attr
        case ast.Constant(value=str()):
            return str(node.value)
        case _:
            return None


def test_every_function_is_called() -> None:
    """A rule that no table names, a helper whose last caller went: code that is written and never runs."""
    names = used_names()
    unused = [
        f"{path}: {node.name}"
        for path, text in modules().items()
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.decorator_list
        and node.name not in names
    ]

    assert unused == []


def test_every_rule_is_applied() -> None:
    """A function of a family of rules is named through its module, so that one of the same name elsewhere does not hide it."""
    trees = {path: ast.parse(text) for path, text in modules().items()}
    rules = {path: tree for path, tree in trees.items() if path.startswith("app/domain/rules/")}
    named = {
        (node.value.id, node.attr)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    named |= {
        ((node.module or "").rpartition(".")[2], alias.name)
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for path, tree in rules.items():
        named |= {(Path(path).stem, node.id) for node in ast.walk(tree) if isinstance(node, ast.Name)}
    written = {
        (Path(path).stem, node.name) for path, tree in rules.items() for node in tree.body if isinstance(node, ast.FunctionDef)
    }

    assert written - named == set(), "name it in a table of app/domain/rules/decide.py"


def test_every_module_is_imported() -> None:
    """A module that was replaced and stayed; only the command line is started from outside."""
    imported = {target for targets in imports().values() for target in targets}
    started = {path for path in modules() if not path.endswith("__init__.py")}

    assert started - imported == {"app/cli.py"}


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(routes.__path__)])
def test_every_module_of_routes_is_included(name: str) -> None:
    """A router that the app does not include answers 404."""
    router = getattr(import_module(f"{routes.__name__}.{name}"), "router", None)

    assert router is None or router in routes.ROUTERS, "name it in app/api/routes/__init__.py"


def test_every_row_that_the_code_names_is_known() -> None:
    """An id such as K07, which an explanation shows, has its sentence in docs/rows.md and a conformance test."""
    known = set(re.findall(r"^\| ([KBRAS]\d\d) \| \S", (DOCS / "rows.md").read_text(), re.MULTILINE))
    tests = [text for path, text in texts().items() if path.startswith("tests/conformance/")]
    tested = {row for text in tests for row in re.findall(r"def test_([KBRAS]\d\d)_", text)}
    cited = {row for text in [*modules().values(), RULES] for row in re.findall(r"\b[KBRAS]\d\d\b", text)}

    assert (tested | cited) - known == set(), "add the row to docs/rows.md"
    assert known - tested == set(), "write its conformance test"


@pytest.mark.parametrize("word", sorted({*get_args(EntryType), *get_args(Reason), *get_args(Outcome)}))
def test_the_rules_name_every_type_reason_and_outcome(word: str) -> None:
    """docs/rules.md says what an entry of each type does, and when each reason and outcome is given."""
    assert re.search(rf"(?<![\w.]){re.escape(word)}(?![\w.]\w)", RULES)


def test_the_naive_model_knows_every_setting_type_and_reason() -> None:
    """A rule that moves boundaries is written twice: the property tests compare the two only where the second one has it."""
    nodes = list(ast.walk(ast.parse((ROOT / "tests" / "domain" / "naive.py").read_text())))
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    named = {node.value for node in nodes if isinstance(node, ast.Constant)}

    assert set(Policy.__struct_fields__) - read == NO_BOUNDARY, "read the setting in tests/domain/naive.py"
    assert {*get_args(EntryType), *get_args(Reason)} - named == {"search"}, "name the type or reason in tests/domain/naive.py"


def test_the_property_tests_draw_every_setting() -> None:
    """A setting that no drawn policy has is never compared."""
    words = {
        node.value
        for node in ast.walk(ast.parse((ROOT / "tests" / "domain" / "strategies.py").read_text()))
        if isinstance(node, ast.Constant)
    }

    assert set(Policy.__struct_fields__) - words == set(), "draw it in tests/domain/strategies.py"


@pytest.mark.parametrize("event", get_args(EventType))
def test_the_webhook_guide_names_every_event(event: str) -> None:
    """docs/webhooks.md says when it is sent."""
    assert f"`{event}`" in (DOCS / "webhooks.md").read_text()


def test_every_column_of_a_session_has_its_filter() -> None:
    """A column that is added and no list is filtered by: a filter that was forgotten, together with its test."""
    assert set(sessions.c.keys()) - set(SessionFilter.__struct_fields__) == BY_OTHER_FILTERS | NOT_FILTERED


def test_the_migrations_are_one_chain() -> None:
    """Two made at once must not both follow the same one; the later takes the higher number."""
    files = sorted((ROOT / "migrations" / "versions").glob("*.py"))
    pattern = re.compile(r'^revision = "(\d+)"\ndown_revision = (?:"(\d+)"|None)$', re.MULTILINE)
    revisions = [pattern.search(file.read_text()) for file in files]
    pairs = [found.groups() for found in revisions if found]

    assert len(pairs) == len(files)
    assert [file.name[:4] for file in files] == [revision for revision, _ in pairs]
    assert [before for _, before in pairs] == [None, *(revision for revision, _ in pairs[:-1])]


def test_every_field_of_the_filter_is_a_query_parameter() -> None:
    """A field without a description is no parameter; `bots` and `metadata` are parameters of their own."""
    assert set(SessionFilter.__struct_fields__) - set(public_fields(SessionFilter)) == {"bots", "metadata"}


def test_the_api_guide_names_every_query_parameter() -> None:
    """A filter that no guide names is a filter that no client uses."""
    document: dict[str, Any] = create_app(Settings(redis_url="redis://nowhere", database_url="postgresql://nowhere/db")).openapi()
    operations = (operation for path in document["paths"].values() for operation in path.values())
    names = {each["name"] for operation in operations for each in operation.get("parameters", ()) if each["in"] == "query"}
    guide = (DOCS / "api.md").read_text() + (DOCS / "metrics.md").read_text()

    assert {name for name in names if not re.search(rf"[`?&]{name}\b", guide)} == set()


def test_the_api_guide_names_every_filter_of_sessions_where_it_lists_them() -> None:
    """Most have the names of fields, which the guide names elsewhere."""
    document = create_app(Settings(redis_url="redis://nowhere", database_url="postgresql://nowhere/db")).openapi()
    filters = {each["name"] for each in document["paths"]["/v1/sessions"]["get"]["parameters"]} - {"limit", "cursor", "order"}
    paragraph = next(line for line in (DOCS / "api.md").read_text().splitlines() if line.startswith("Closed sessions by filter"))

    assert {name for name in filters if not re.search(rf"`{name}[`.]", paragraph)} == set()
