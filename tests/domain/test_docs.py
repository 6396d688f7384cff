"""`docs/rules.md` and `docs/policies.md` show presets, fields and descriptions as they are."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import json

from app.domain.policy.describe import describe, policy_view
from app.domain.policy.model import Policy
from app.domain.policy.parse import PRESETS, policy_from

# Defaults that the table has in words.
_SPECIAL = {"channels": "none", "starts_with": "all"}
DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "rules.md"
GUIDE = (DOCS / "policies.md").read_text()


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.encode(value).decode()


def spread(field: str) -> list[str]:
    """`channels.{a,b}.x` stands for `channels.a.x` and `channels.b.x`."""
    several = re.fullmatch(r"(.*)\{(.*)\}(.*)", field)
    return [f"{several[1]}{one}{several[3]}" for one in several[2].split(",")] if several else [field]


def test_table_of_presets_is_the_presets() -> None:
    """Every value of every preset, and nothing else."""
    rows = re.findall(r"^\| `([\w.-]+)` \| `([^`]+)` \| `([^`]+)` \|$", RULES.read_text(), re.MULTILINE)
    shown = {(preset, name, value) for preset, field, value in rows if preset in PRESETS for name in spread(field)}

    assert shown == {(preset, name, value) for preset, values in PRESETS.items() for name, value in flat(values)}


def test_table_of_fields_has_every_field_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (\S+) \|$", RULES.read_text(), re.MULTILINE))
    defaults = {name: value.strip("`") for name, value in rows.items() if name in policy_view(Policy())}

    assert defaults == {
        name: _SPECIAL.get(name) or (value if isinstance(value, str) else json.encode(value).decode())
        for name, value in policy_view(Policy()).items()
    }


def test_four_systems_side_by_side_are_the_presets() -> None:
    """Every setting of the guide's table, in every column; only `starts_with` and `channels` are in words."""
    columns = (("kore", "web"), ("botanalytics", "web"), ("reamaze", "web"), ("aivo", "web"), ("aivo", "whatsapp"))
    views = [policy_view(policy_from({"preset": preset}).on(channel)) for preset, channel in columns]
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \|$", GUIDE, re.MULTILINE)
    found = {name: cells.split("` | `") for name, cells in rows}

    expected = {name: [in_words(view[name]) for view in views] for name in views[0]}
    assert found == {name: cells for name, cells in expected.items() if name not in {"starts_with", "channels"}}


def test_example_of_the_guide_is_described_as_shown() -> None:
    """The policy of the guide, its words and its timeline; and the notices of the other example."""
    blocks = re.findall(r"^```json\n(\{\n.*?^\})\n```$", GUIDE, re.MULTILINE | re.DOTALL)
    policy, described = json.decode(blocks[0]), json.decode(blocks[1])
    found = describe(policy_from(policy))
    shown = re.search(r'"notices": (\[\n.*?\n\])', GUIDE, re.DOTALL)

    assert {name: found[name] for name in described} == described
    assert shown is not None
    quiet = {"preset": "kore-7.2", "closure_message": {"texts": {"default": "Bye"}}}
    assert json.decode(shown[1]) == describe(policy_from(quiet))["notices"]


def in_words(value: object) -> str:
    return value if isinstance(value, str) else json.encode(value).decode()
