"""From what a caller sends to a policy: a preset with overrides over it, read by the policy's types, every fault at once.

{"preset": "aivo", "on_resolved": "continue"}  ->  Policy
"""

from collections.abc import Iterator, Mapping
from typing import Any

from app.domain.errors import Fault, InvalidPolicy
from app.domain.policy.model import Policy
from app.domain.policy.presets import PRESETS
from app.domain.reading import read, shown


def policy_from(given: object) -> Policy:
    """The policy that `given` (decoded JSON) asks for: a preset, if it names one, and the fields beside it.

    Raises `InvalidPolicy` with every fault, each with its path.
    """
    if not isinstance(given, Mapping):
        raise InvalidPolicy([Fault("policy", f"{shown(given)} given", "an object of fields is expected")])
    faults = list(_unknown_preset(given.get("preset")))
    policy, found = read(Policy, _merged(given))
    faults += found if policy is None else _contradictions(policy)
    if policy is None or faults:
        raise InvalidPolicy(faults)
    return policy


def _unknown_preset(preset: object) -> Iterator[Fault]:
    if preset is not None and not (isinstance(preset, str) and preset in PRESETS):
        yield Fault("preset", f"{shown(preset)} given", f"one of {', '.join(PRESETS)} is expected")


def _merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's values with the given ones over them, channel by channel and field by field."""
    own = {name: value for name, value in given.items() if name != "preset" and (name != "channels" or value is not None)}
    preset = given.get("preset")
    values = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    channels = own.get("channels")
    if isinstance(channels, Mapping) and "channels" in values:
        own["channels"] = _merged_channels(values["channels"], channels)
    return {**values, **own}


def _merged_channels(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {**preset, **own}
    for channel, values in own.items():
        if channel in preset and isinstance(values, Mapping):
            merged[channel] = {**preset[channel], **values}
    return merged


def _contradictions(policy: Policy) -> Iterator[Fault]:
    """Values that are impossible only together: a reminder must come before the deadline that it warns of."""
    for path, on in (("", policy), *((f"channels.{channel}.", policy.on(channel)) for channel in policy.channels)):
        if on.reminder is not None and on.reminder.minutes >= on.inactivity_minutes:
            yield Fault(
                f"{path}reminder.minutes",
                f"{on.reminder.minutes} given",
                f"it must be less than the {on.inactivity_minutes} minutes of silence there",
            )
