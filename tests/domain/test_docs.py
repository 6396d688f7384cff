"""`docs/rules.md` tells the presets as they are."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import json

from app.domain.policy.describe import policy_view
from app.domain.policy.model import Policy
from app.domain.policy.presets import PRESETS

# Defaults that the table has in words.
_SPECIAL = {"channels": "none", "starts_with": "all"}
RULES = Path(__file__).parents[2] / "docs" / "rules.md"


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
    told = {(preset, name, value) for preset, field, value in rows if preset in PRESETS for name in spread(field)}

    assert told == {(preset, name, value) for preset, values in PRESETS.items() for name, value in flat(values)}


def test_table_of_fields_has_every_field_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (\S+) \|$", RULES.read_text(), re.MULTILINE))
    defaults = {name: value.strip("`") for name, value in rows.items() if name in policy_view(Policy())}

    assert defaults == {
        name: _SPECIAL.get(name) or (value if isinstance(value, str) else json.encode(value).decode())
        for name, value in policy_view(Policy()).items()
    }
