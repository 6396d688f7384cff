"""Stored records: every field is described, every field of an entry and of a session reaches the JSON."""

import ast
import io
import tokenize
from pathlib import Path

from app.domain import records, transcript
from app.domain.entry import Entry
from app.domain.records import Answer, Message, Session, last_reported
from app.domain.session_view import ROLES, message_view

SOURCE = Path(records.__file__).read_text()


def test_every_field_of_a_stored_record_is_described() -> None:
    """By a comment on its line or on the line before it, or for the API: its meaning and, where it has one, its unit."""
    comments = [token for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline) if token.type == tokenize.COMMENT]
    described = {token.start[0] + (token.line.lstrip() == token.line[token.start[1] :]) for token in comments}
    stored = [
        node
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.ClassDef) and any(keyword.arg == "array_like" for keyword in node.keywords)
    ]
    fields = [field for record in stored for field in record.body if isinstance(field, ast.AnnAssign)]

    assert {record.name for record in stored} >= {"Session", "Message", "State", "Event", "Answer"}
    assert [
        ast.unparse(field) for field in fields if field.lineno not in described and "description=" not in ast.unparse(field)
    ] == []


def test_every_field_of_an_entry_reaches_the_transcript() -> None:
    """A field that is accepted is shown: each by its name, but for what the session itself says."""
    shown = message_view(Message(1, "m", 0, "user", "message", None, Answer(None, "none", 0, None, 0))).keys()
    extra = set(transcript._RARE)

    assert Entry.__struct_fields__ != ()
    assert set(Entry.__struct_fields__) - shown - extra == {"channel", "conversation_id"}
    assert extra & shown == set()


def test_every_field_of_a_session_is_set_by_a_rule() -> None:
    """By name, in a change or as an argument, or by its mark; the fields of each role are named by their pattern."""
    trees = [ast.parse(path.read_text()) for path in (Path(records.__file__).parent / "rules").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named: set[object] = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    named |= {node.slice.value for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)}
    named |= {key.value for node in nodes if isinstance(node, ast.Dict) for key in node.keys if isinstance(key, ast.Constant)}
    of_roles = {f"{role}_entries" for role in ROLES} | {f"{which}_{role}_at_ms" for role in ROLES for which in ("first", "last")}

    assert set(last_reported()) - set(Entry.__struct_fields__) == set(), "an entry reports the field"
    assert set(Session.__struct_fields__) - named - of_roles - set(last_reported()) == set()
