"""A bot's session policy: its fields, their ranges and defaults (`docs/rules.md`, "Policy"), and what it means for one channel.

It owns the records. What a caller sends becomes one of them by `app.domain.policy.parse.policy_from`.
"""

from functools import cached_property
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, structs

from app.domain.instants import HOUR_MS, MINUTE_MS

Method = Literal["inactivity", "platform", "client"]
Closing = Literal["proactive", "on_new_intent", "on_return"]
InactivityClock = Literal["any", "user"]
OnHandoff = Literal["continue", "end", "split", "pause"]
OnSignal = Literal["continue", "end"]


class Spoken(Struct, frozen=True, kw_only=True):
    """Words for a user. `texts` by language tag, with a `default`; `channels` that can show them, None for all."""

    texts: dict[str, str]
    channels: tuple[str, ...] | None = None


class ClosureMessage(Spoken, frozen=True, kw_only=True):
    """Said when the silence closes a session (K09, K10)."""


class Reminder(Spoken, frozen=True, kw_only=True):
    """Said `minutes` before the silence would close a session; an entry cancels it."""

    minutes: int


class Overrides(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one channel does otherwise: only what differs is set."""

    method: Method | UnsetType = UNSET
    closing: Closing | UnsetType = UNSET
    inactivity_minutes: int | UnsetType = UNSET
    inactivity_clock: InactivityClock | UnsetType = UNSET
    closure_message: ClosureMessage | UnsetType | None = UNSET
    reminder: Reminder | UnsetType | None = UNSET
    on_handoff: OnHandoff | UnsetType = UNSET
    on_escalated: OnSignal | UnsetType = UNSET
    on_resolved: OnSignal | UnsetType = UNSET
    on_survey_answered: OnSignal | UnsetType = UNSET
    discard_closes: bool | UnsetType = UNSET
    requires_bot: bool | UnsetType = UNSET
    abandon_after_hours: int | UnsetType = UNSET
    max_duration_hours: int | UnsetType = UNSET
    billing_block_minutes: int | UnsetType = UNSET


class Policy(Struct, frozen=True, kw_only=True):
    """One bot's policy. The fields after `channels` hold wherever a channel does not say otherwise."""

    inactivity_minutes: int = 15
    method: Method = "inactivity"
    closing: Closing = "proactive"
    inactivity_clock: InactivityClock = "any"
    closure_message: ClosureMessage | None = None
    reminder: Reminder | None = None
    on_handoff: OnHandoff = "continue"
    on_escalated: OnSignal = "continue"
    on_resolved: OnSignal = "end"
    on_survey_answered: OnSignal = "continue"
    discard_closes: bool = True
    requires_bot: bool = False
    abandon_after_hours: int = 168
    max_duration_hours: int = 168
    billing_block_minutes: int = 15
    channels: dict[str, Overrides] = {}

    def on(self, channel: str) -> "Policy":
        """The policy as it stands on one channel."""
        overrides = self.channels.get(channel)
        return self if overrides is None else structs.replace(self, **_set_fields(overrides))


class Terms(Struct, frozen=True):
    """A policy version as it stands on one channel, ready for deciding: durations in ms, questions answered."""

    version: int
    effective_at_ms: int
    policy: Policy
    proactive: bool
    lazy: bool
    user_clock: bool
    pauses: bool
    silence_ms: int
    remind_before_ms: int | None
    abandon_ms: int
    max_duration_ms: int
    billing_block_ms: int


class PolicyVersion(Struct, frozen=True, dict=True):
    """A policy as saved. `effective_at_ms` is in the bot's own time."""

    version: int
    effective_at_ms: int
    policy: Policy

    def terms(self, channel: str) -> Terms:
        """What holds on `channel`. Computed once for each channel that has overrides, and once for all others."""
        return self._by_channel.get(channel) or self._elsewhere

    @cached_property
    def _elsewhere(self) -> Terms:
        return _terms(self, self.policy)

    @cached_property
    def _by_channel(self) -> dict[str, Terms]:
        return {channel: _terms(self, self.policy.on(channel)) for channel in self.policy.channels}


def _set_fields(overrides: Overrides) -> dict[str, object]:
    return {name: value for name, value in structs.asdict(overrides).items() if value is not UNSET}


def _terms(saved: PolicyVersion, policy: Policy) -> Terms:
    by_silence = policy.method == "inactivity"
    proactive = by_silence and policy.closing == "proactive"
    return Terms(
        version=saved.version,
        effective_at_ms=saved.effective_at_ms,
        policy=policy,
        proactive=proactive,
        lazy=by_silence and not proactive,
        user_clock=policy.inactivity_clock == "user",
        pauses=policy.on_handoff == "pause",
        silence_ms=policy.inactivity_minutes * MINUTE_MS,
        remind_before_ms=policy.reminder.minutes * MINUTE_MS if policy.reminder and proactive else None,
        abandon_ms=policy.abandon_after_hours * HOUR_MS,
        max_duration_ms=policy.max_duration_hours * HOUR_MS,
        billing_block_ms=policy.billing_block_minutes * MINUTE_MS,
    )
