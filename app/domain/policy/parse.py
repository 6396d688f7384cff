"""From what a caller sends to a policy: a preset with overrides over it, read by the policy's types, every fault at once.

{"preset": "aivo", "on_resolved": "continue"}  ->  Policy

The eight presets are the session rules of each of the four systems as values of a policy (`docs/rules.md`, "Presets").
"""

from collections.abc import Iterator, Mapping
from typing import Any

from app.domain.errors import Fault, InvalidPolicy
from app.domain.policy.model import Policy
from app.domain.reading import read, shown

_MESSAGING = ("facebook", "whatsapp", "instagram", "telegram", "twitter", "sms")
_LONG = {"inactivity_minutes": 1440, "on_handoff": "end", "on_survey_answered": "end"}
_SHORT = {"inactivity_minutes": 5}
_HELP = {**_SHORT, "starts_with": ["article.opened"]}
_DISCARD = {"discard_utterances": ["discard"], "discard_all_utterances": ["discard all"]}

PRESETS: dict[str, dict[str, Any]] = {
    "kore": {"closing": "proactive", "inactivity_minutes": 15, "inactivity_clock": "user", **_DISCARD},
    "kore-7.2": {"closing": "on_new_intent", "inactivity_minutes": 15, "inactivity_clock": "user", **_DISCARD},
    "kore-legacy": {"closing": "on_return", "inactivity_minutes": 15, "inactivity_clock": "user", **_DISCARD},
    "botanalytics": {"closing": "proactive", "inactivity_minutes": 15, "inactivity_clock": "any", "on_handoff": "split"},
    "botanalytics-platform": {"method": "platform", "abandon_after_hours": 24, "bot_starts": False},
    "botanalytics-client": {"method": "client", "abandon_after_hours": 24},
    "reamaze": {
        "closing": "proactive",
        "inactivity_minutes": 15,
        "inactivity_clock": "any",
        "on_escalated": "end",
        "on_resolved": "end",
        "requires_bot": True,
        "agent_message_joins": False,
    },
    "aivo": {
        "closing": "proactive",
        "inactivity_minutes": 5,
        "inactivity_clock": "user",
        "channels": {**dict.fromkeys(_MESSAGING, _LONG), "web": _SHORT, "api": _SHORT, "help": _HELP},
    },
}


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
