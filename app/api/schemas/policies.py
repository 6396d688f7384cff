"""Policies as the API tells them. What it takes is any JSON object: the domain names every problem in it."""

from typing import Annotated, Any

from msgspec.json import schema_components
from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy import Row

from app.api.schemas.common import JsonObject, Next
from app.domain.instants import ms_of, rfc3339
from app.domain.policy.describe import notices, policy_view
from app.domain.policy.model import Policy
from app.domain.policy.presets import PRESETS


def _policy_schema() -> dict[str, Any]:
    """What a policy may hold, from the domain's own records, written out in one piece."""
    (_, components) = schema_components((Policy,), ref_template="{name}")

    def whole(part: Any) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(part, dict):
            return whole(components[part["$ref"]]) if "$ref" in part else {name: whole(inner) for name, inner in part.items()}
        return [whole(inner) for inner in part] if isinstance(part, list) else part

    policy: dict[str, Any] = whole(components["Policy"])
    preset = {"enum": list(PRESETS), "description": "Its values hold wherever no field says otherwise."}
    return policy | {
        "title": "PolicyToSave",
        "description": "A preset's name and overrides, or fields alone; what is left out has its default.",
        "properties": {"preset": preset, **policy["properties"]},
        "examples": [{"preset": "kore", "inactivity_minutes": 20}],
    }


PolicyToSave = Annotated[JsonObject, WithJsonSchema(_policy_schema())]


class SavedPolicy(BaseModel):
    """One version as it was saved: by which key, and since when it holds (in the bot's own time)."""

    version: int
    policy: Annotated[dict[str, Any], Field(description="What was saved: a preset's name and overrides, or fields.")]
    effective_at: str
    changed_at: str
    changed_by: Annotated[str | None, Field(description="The id of the key; null: not by API.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "SavedPolicy":
        return cls(**_saved(row))


class PolicyView(SavedPolicy):
    """The version that holds. `resolved` is what it comes to, field by field; `notices` is what its owner should know."""

    resolved: dict[str, Any]
    notices: list[str]

    @classmethod
    def with_policy(cls, row: Row[Any], policy: Policy) -> "PolicyView":
        return cls(**_saved(row), resolved=policy_view(policy), notices=notices(policy))


class PolicyVersions(BaseModel):
    """Every version, the latest first."""

    versions: list[SavedPolicy]
    next: Next


class PresetView(BaseModel):
    """A preset: the values that it sets, and the whole policy that they come to."""

    name: str
    values: dict[str, Any]
    resolved: dict[str, Any]


class Presets(BaseModel):
    presets: list[PresetView]


def _saved(row: Row[Any]) -> dict[str, Any]:
    return {
        "version": row.version,
        "policy": row.policy,
        "effective_at": rfc3339(ms_of(row.effective_at)),
        "changed_at": rfc3339(ms_of(row.changed_at)),
        "changed_by": row.changed_by,
    }
