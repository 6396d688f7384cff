"""From what a caller sends to a policy: presets, ranges, words, and every problem at once.

    {"preset": "aivo", "on_resolved": "continue"}  ->  Policy

It is the face of the policy: the records come from `policy_fields`, the presets from `presets`, the words from `policy_words`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, get_args

from msgspec import json

from app.domain.errors import InvalidPolicy
from app.domain.policy.describe import describe, notices, policy_view
from app.domain.policy.model import (
    Closing,
    ClosureMessage,
    InactivityClock,
    Method,
    OnHandoff,
    OnSignal,
    Overrides,
    Policy,
    PolicyVersion,
    Reminder,
    Terms,
)
from app.domain.policy.presets import PRESETS
from app.domain.policy.texts import PLACEHOLDERS, placeholders_in

__all__ = [
    "PRESETS",
    "ClosureMessage",
    "Overrides",
    "Policy",
    "PolicyVersion",
    "Reminder",
    "Terms",
    "describe",
    "notices",
    "policy_from",
    "policy_view",
]

_LONGEST_TEXT = 2_000
_MOST_TEXTS = 100
_MOST_CHANNELS = 100
_LONGEST_TOLD = 60
_CHANNEL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_LANGUAGE = re.compile(r"default|[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_INACTIVITY = (5, 60)
_INACTIVITY_OF_A_CHANNEL = (5, 1440)

Problems = list[tuple[str, str]]
Check = Callable[[object, str, Problems], object]


def policy_from(given: object) -> Policy:
    """The policy that `given` (decoded JSON) asks for: a preset, if it names one, and what it sets beside it.

    Raises `InvalidPolicy` with all problems, each with its path and, after a semicolon, what is allowed.
    """
    problems: Problems = []
    values = _merged(given, problems)
    channels = values.pop("channels", None)
    fields = _checked(values, _FIELDS, "", problems)
    fields["channels"] = _channels(channels, problems)
    if not problems:
        policy = Policy(**fields)
        problems.extend(_contradictions(policy))
        if not problems:
            return policy
    raise InvalidPolicy(tuple(problems))


def _merged(given: object, problems: Problems) -> dict[str, Any]:
    """A preset's values with the given ones over them, channel by channel and field by field."""
    if not isinstance(given, Mapping):
        problems.append(("", f"{_told(given)} given; an object of fields is expected"))
        return {}
    own = {name: value for name, value in given.items() if name != "preset"}
    preset = given.get("preset")
    if preset is None:
        return own
    if not isinstance(preset, str) or preset not in PRESETS:
        problems.append(("preset", f"{_told(preset)} given; one of {', '.join(PRESETS)} is expected"))
        return own
    merged = {**PRESETS[preset], **own}
    channels = own.get("channels")
    if isinstance(channels, Mapping) and "channels" in PRESETS[preset]:
        merged["channels"] = _merged_channels(PRESETS[preset]["channels"], channels)
    return merged


def _merged_channels(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {**preset, **own}
    for channel, values in own.items():
        if channel in preset and isinstance(values, Mapping):
            merged[channel] = {**preset[channel], **values}
    return merged


def _checked(values: Mapping[str, Any], fields: Mapping[str, Check], path: str, problems: Problems) -> dict[str, Any]:
    checked = {}
    for name, value in values.items():
        check = fields.get(name)
        if check is None:
            problems.append((f"{path}{name}", f"there is no such field; the fields are {', '.join(fields)}"))
        else:
            checked[name] = check(value, f"{path}{name}", problems)
    return checked


def _channels(given: object, problems: Problems) -> dict[str, Overrides]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        problems.append(("channels", f"{_told(given)} given; an object of channel names and their overrides is expected"))
        return {}
    if len(given) > _MOST_CHANNELS:
        problems.append(("channels", f"{len(given)} channels given; at most {_MOST_CHANNELS} are allowed"))
        return {}
    return {channel: overrides for channel in given if (overrides := _channel(channel, given[channel], problems)) is not None}


def _channel(name: str, values: object, problems: Problems) -> Overrides | None:
    path = f"channels.{name}"
    if not _CHANNEL.fullmatch(name):
        problems.append(
            (path, "that is no channel's name; it has 1 to 64 of a-z, 0-9, `_`, `.` and `-`, first a letter or digit")
        )
    elif not isinstance(values, Mapping):
        problems.append((path, f"{_told(values)} given; an object of fields is expected"))
    else:
        known = len(problems)
        fields = _checked(values, _CHANNEL_FIELDS, f"{path}.", problems)
        if len(problems) == known:
            return Overrides(**fields)
    return None


def _contradictions(policy: Policy) -> Iterator[tuple[str, str]]:
    """What is impossible only together: a reminder must come before the deadline that it warns of."""
    for path, on in (("", policy), *((f"channels.{channel}.", policy.on(channel)) for channel in policy.channels)):
        if on.reminder is not None and on.reminder.minutes >= on.inactivity_minutes:
            yield (
                f"{path}reminder.minutes",
                f"{on.reminder.minutes} given; it must be less than the {on.inactivity_minutes} minutes of silence there",
            )


def _choice(allowed: tuple[str, ...], value: object, path: str, problems: Problems) -> object:
    if not isinstance(value, str) or value not in allowed:
        problems.append((path, f"{_told(value)} given; one of {', '.join(allowed)} is expected"))
    return value


def _whole(bounds: tuple[int, int], value: object, path: str, problems: Problems) -> object:
    least, most = bounds
    if type(value) is not int or not least <= value <= most:
        problems.append((path, f"{_told(value)} given; a whole number from {least} to {most} is expected"))
    return value


def _boolean(value: object, path: str, problems: Problems) -> object:
    if not isinstance(value, bool):
        problems.append((path, f"{_told(value)} given; true or false is expected"))
    return value


def _closure_message(value: object, path: str, problems: Problems) -> object:
    checked = _spoken(_CLOSURE_MESSAGE_FIELDS, value, path, problems)
    return None if checked is None else ClosureMessage(**checked)


def _reminder(value: object, path: str, problems: Problems) -> object:
    checked = _spoken(_REMINDER_FIELDS, value, path, problems)
    return None if checked is None else Reminder(**checked)


def _spoken(fields: Mapping[str, Check], value: object, path: str, problems: Problems) -> dict[str, Any] | None:
    """Texts by language and what goes with them; None if it is off (null, false or `off`) or wrong."""
    if value is None or value is False or value == "off":
        return None
    if not isinstance(value, Mapping):
        problems.append((path, f"{_told(value)} given; an object with {', '.join(fields)} is expected, or null for off"))
        return None
    known = len(problems)
    checked = _checked(value, fields, f"{path}.", problems)
    problems.extend((f"{path}.{name}", "it is required; add it") for name in fields if name not in {*checked, "channels"})
    return checked if len(problems) == known else None


def _texts(value: object, path: str, problems: Problems) -> object:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        problems.append((path, f"{_told(value)} given; an object of language tags and their texts is expected"))
        return {}
    if len(value) > _MOST_TEXTS:
        problems.append((path, f"{len(value)} texts given; at most {_MOST_TEXTS} are allowed"))
        return {}
    if "default" not in value:
        problems.append((path, "there is no text for `default`; it is required, since it is said where no other language fits"))
    for language, text in value.items():
        problems.extend((f"{path}.{language}", problem) for problem in _text_problems(language, text))
    return dict(value)


def _text_problems(language: str, text: str) -> Iterator[str]:
    if not _LANGUAGE.fullmatch(language):
        yield "that is no language; a tag such as `pt` or `pt-BR` is expected, or `default`"
    if not 1 <= len(text) <= _LONGEST_TEXT:
        yield f"{len(text)} characters given; 1 to {_LONGEST_TEXT} are allowed"
    for name in placeholders_in(text):
        if name not in PLACEHOLDERS:
            yield f"there is no placeholder {{{name}}}; there are {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}"


def _supported(value: object, path: str, problems: Problems) -> object:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and _CHANNEL.fullmatch(name) for name in value):
        problems.append((path, f"{_told(value)} given; a list of channel names is expected, or null for all channels"))
        return None
    return tuple(value)


def _told(value: object) -> str:
    """What was given, as JSON short enough to be read."""
    told = json.encode(value).decode()
    return told if len(told) <= _LONGEST_TOLD else f"{told[:_LONGEST_TOLD]}…"


_CLOSURE_MESSAGE_FIELDS: dict[str, Check] = {"texts": _texts, "channels": _supported}
_REMINDER_FIELDS: dict[str, Check] = {**_CLOSURE_MESSAGE_FIELDS, "minutes": partial(_whole, (1, _INACTIVITY_OF_A_CHANNEL[1] - 1))}
_CHANNEL_FIELDS: dict[str, Check] = {
    "method": partial(_choice, get_args(Method)),
    "closing": partial(_choice, get_args(Closing)),
    "inactivity_minutes": partial(_whole, _INACTIVITY_OF_A_CHANNEL),
    "inactivity_clock": partial(_choice, get_args(InactivityClock)),
    "closure_message": _closure_message,
    "reminder": _reminder,
    "on_handoff": partial(_choice, get_args(OnHandoff)),
    "on_escalated": partial(_choice, get_args(OnSignal)),
    "on_resolved": partial(_choice, get_args(OnSignal)),
    "on_survey_answered": partial(_choice, get_args(OnSignal)),
    "discard_closes": _boolean,
    "requires_bot": _boolean,
    "abandon_after_hours": partial(_whole, (1, 720)),
    "max_duration_hours": partial(_whole, (1, 720)),
    "billing_block_minutes": partial(_whole, (1, 1440)),
}
_FIELDS: dict[str, Check] = {**_CHANNEL_FIELDS, "inactivity_minutes": partial(_whole, _INACTIVITY)}
