"""A bot's session policy. Fields, ranges and defaults: `RULES.md`, "Policy"."""

from msgspec import Struct


class Policy(Struct, frozen=True, kw_only=True):
    """One bot's policy; channel overrides are partial."""

    inactivity_minutes: int = 15
    # … the domain's own fields follow


class PolicyVersion(Struct, frozen=True):
    """A policy as saved. `effective_at_ms` is in the bot's own time."""

    version: int
    effective_at_ms: int
    policy: Policy
