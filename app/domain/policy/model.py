"""The fields of a policy with their limits and defaults, the texts for users in it, and what a policy means on one channel.

Each field is written once: a channel's overrides, the reader, the OpenAPI document and its descriptions derive from the types.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_type_hints

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, structs

from app.domain.entry import END, Intent, Slug
from app.domain.errors import Fault
from app.domain.instants import HOUR_MS, MINUTE_MS, SECOND_MS

PLACEHOLDERS = ("minutes", "user_id", "bot")
DEFAULT = "default"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _unknown_placeholders(text: str) -> Iterator[Fault]:
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for match in _PLACEHOLDER.finditer(text):
        if match[1] not in PLACEHOLDERS:
            yield Fault("", f"there is no placeholder {{{match[1]}}}", f"there are {known}")


def _lacks_default(texts: Mapping[str, str]) -> Iterator[Fault]:
    if DEFAULT not in texts:
        yield Fault("", f"there is no text for `{DEFAULT}`", "it is required, since it is used where no other language fits")


TextLanguage = Annotated[
    str,
    Meta(
        pattern=r"^(default|[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*)$" + END,
        extra={"expected": "a language tag such as `pt` or `pt-BR`, or `default`,"},
    ),
]
Text = Annotated[str, Meta(min_length=1, max_length=2_000, extra={"check": _unknown_placeholders})]
Texts = Annotated[
    dict[TextLanguage, Text],
    Meta(max_length=100, extra={"expected": "an object of language tags and their texts", "check": _lacks_default}),
]
ShowingChannels = Annotated[
    tuple[Slug, ...], Meta(max_length=100, extra={"expected": "a list of channel names, or null for all channels,"})
]


class Spoken(Struct, frozen=True, kw_only=True):
    """A text for a user, by language, with `default` for all others, on the channels that can show it; None for all."""

    texts: Annotated[
        Texts,
        Meta(
            description="Language tag to text; `default` is required. Placeholders: minutes, user_id, bot.",
            examples=[{"default": "Bye!", "es": "¡Adiós!"}],
        ),
    ]
    channels: Annotated[
        ShowingChannels | None, Meta(description="The channels that can show it; null for all.", examples=[["web"]])
    ] = None


class ClosureMessage(Spoken, frozen=True, kw_only=True):
    """Announced when the silence closes a session (K09, K10)."""

    to: Annotated[
        Literal["interactive", "all"],
        Meta(description="`interactive`: only to sessions in which the user took part (ruling 4)."),
    ] = "interactive"


class Reminder(Spoken, frozen=True, kw_only=True):
    """Announced before the silence closes a session; an entry cancels it."""

    minutes: Annotated[int, Meta(ge=1, le=1439, description="Minutes before the deadline; less than the silence.")]


def text_in(texts: Mapping[str, str], language: str | None) -> tuple[str, str]:
    """The tag and the text that fit `language` best: `pt-BR`, then `pt`, then `default`."""
    by_tag = {tag.lower(): tag for tag in texts}
    wanted = (language or "").lower().replace("_", "-")
    while wanted:
        if wanted in by_tag:
            return by_tag[wanted], texts[by_tag[wanted]]
        wanted = wanted.rpartition("-")[0]
    return DEFAULT, texts[DEFAULT]


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders filled, in one pass: a value is never read as a placeholder."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)


Method = Literal["inactivity", "platform", "client"]
Closing = Literal["proactive", "on_new_intent", "on_return"]
InactivityClock = Literal["any", "user"]
OnHandoff = Literal["continue", "end", "split", "pause"]
OnSignal = Literal["continue", "end"]
Starter = Literal[
    "message", "session.start", "conversation.started", "connect", "authorization", "agent.joined", "article.opened"
]
"""The types of entries that may open a session."""

LONGEST_SESSION_HOURS = 720
STARTERS = get_args(Starter)

_SILENCE = "Minutes of silence: 5 to 60, on a channel up to 1440."
Utterance = Annotated[str, Meta(min_length=1, max_length=256)]
Utterances = Annotated[tuple[Utterance, ...], Meta(max_length=32, extra={"expected": "a list of texts"})]


Transcript = Literal["full", "redacted", "none"]
Mask = Annotated[str, Meta(min_length=2, max_length=64)]
Masks = Annotated[tuple[Mask, ...], Meta(max_length=32, extra={"expected": "a list of masks"})]


class ChannelPolicy(Struct, frozen=True, kw_only=True):
    """The fields that hold on one channel."""

    inactivity_minutes: Annotated[int, Meta(ge=5, le=1440, description=_SILENCE)] = 15
    method: Annotated[
        Method,
        Meta(description="The bounds of a session: silence, the platform's start and end signals, or the client's session ids."),
    ] = "inactivity"
    closing: Annotated[
        Closing, Meta(description="When the silence closes: at once, or lazily when the user comes back (deprecated).")
    ] = "proactive"
    inactivity_clock: Annotated[InactivityClock, Meta(description="Whose entries restart the clock of the silence.")] = "any"
    closure_message: Annotated[
        ClosureMessage | None, Meta(description="The text for the user when the silence closes; null: off.")
    ] = None
    reminder: Annotated[Reminder | None, Meta(description="The text for the user before the silence closes; null: off.")] = None
    on_handoff: Annotated[OnHandoff, Meta(description="The effect of a hand-off to a human on the session.")] = "continue"
    on_escalated: Annotated[OnSignal, Meta(description="The effect of `escalated` on the session.")] = "continue"
    on_resolved: Annotated[OnSignal, Meta(description="The effect of `resolved` on the session.")] = "end"
    on_survey_answered: Annotated[OnSignal, Meta(description="The effect of a survey's answer in time on the session.")] = (
        "continue"
    )
    discard_closes: Annotated[bool, Meta(description="Whether `discard` closes the session after it has cleared.")] = True
    discard_utterances: Annotated[
        Utterances,
        Meta(description="A user's message that is one of these texts, in any case, discards.", examples=[["discard"]]),
    ] = ()
    discard_all_utterances: Annotated[
        Utterances,
        Meta(description="A user's message that is one of these texts, in any case, discards all.", examples=[["discard all"]]),
    ] = ()
    starts_with: Annotated[
        Annotated[tuple[Starter, ...], Meta(min_length=1, max_length=len(STARTERS))],
        Meta(description="The types of entries that may open a session."),
    ] = STARTERS
    bot_starts: Annotated[bool, Meta(description="Whether a bot's own message or `connect` may open a session.")] = True
    agent_message_joins: Annotated[
        bool, Meta(description="Whether a message by an agent who has not joined counts as `agent.joined`.")
    ] = True
    requires_bot: Annotated[bool, Meta(description="Whether a session counts only if a bot took part.")] = False
    abandon_after_hours: Annotated[
        int, Meta(ge=1, le=LONGEST_SESSION_HOURS, description="Hours without any entry after which a session closes anyway.")
    ] = 168
    max_duration_hours: Annotated[
        int, Meta(ge=1, le=LONGEST_SESSION_HOURS, description="Hours after which an open session closes.")
    ] = 168
    billing_block_minutes: Annotated[int, Meta(ge=1, le=1440, description="Minutes of a billing session.")] = 15
    epilogue_seconds: Annotated[
        int,
        Meta(ge=0, le=600, description="Seconds after a close in which a user's message without an intent is late; 0: off."),
    ] = 0
    epilogue_intents: Annotated[
        Annotated[tuple[Intent, ...], Meta(max_length=32)],
        Meta(description="Intents of messages that are late in that time, too, such as thanks.", examples=[["thanks"]]),
    ] = ()
    transcript: Annotated[
        Transcript,
        Meta(description="The part of texts and metadata that is stored: everything, everything but personal data, or nothing."),
    ] = "full"
    redact_masks: Annotated[
        Masks,
        Meta(
            description="Texts of your own that count as personal: `#` is a digit, `?` a letter, `*` either.",
            examples=[["ORD-######"]],
        ),
    ] = ()


if TYPE_CHECKING:

    class Overrides(Struct, frozen=True):
        """Any of the fields of `ChannelPolicy`; only those that differ are set."""

else:
    Overrides = defstruct(
        "Overrides",
        [(name, kind | UnsetType, UNSET) for name, kind in get_type_hints(ChannelPolicy, include_extras=True).items()],
        frozen=True,
        kw_only=True,
        omit_defaults=True,
        namespace={"__doc__": "The fields in which one channel differs; the others are those of the bot's policy."},
    )

ChannelOverrides = Annotated[
    dict[Slug, Overrides], Meta(max_length=100, extra={"expected": "an object of channel names and their overrides"})
]


class Policy(ChannelPolicy, frozen=True, kw_only=True):
    """One bot's policy: the fields hold wherever a channel does not differ."""

    inactivity_minutes: Annotated[int, Meta(ge=5, le=60, description=_SILENCE)] = 15
    channels: Annotated[ChannelOverrides, Meta(description="Channel to the fields in which it differs.")] = {}

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
    epilogue_ms: int
    discards_by_text: bool
    discard_utterances: frozenset[str]
    discard_all_utterances: frozenset[str]


class PolicyVersion(Struct, frozen=True, dict=True):
    """A policy as saved. `effective_at_ms` is in the bot's own time."""

    version: int
    effective_at_ms: int
    policy: Policy

    def terms(self, channel: str) -> Terms:
        """The terms on `channel`. Computed once for each channel that has overrides, and once for all others."""
        return self._by_channel.get(channel) or self._elsewhere

    @cached_property
    def _elsewhere(self) -> Terms:
        return _terms(self, self.policy)

    @cached_property
    def _by_channel(self) -> dict[str, Terms]:
        return {channel: _terms(self, self.policy.on(channel)) for channel in self.policy.channels}


def folded(text: str) -> str:
    """A text as utterances are compared: without regard to case and to space around it."""
    return text.strip().casefold()


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
        epilogue_ms=policy.epilogue_seconds * SECOND_MS,
        discards_by_text=bool(policy.discard_utterances or policy.discard_all_utterances),
        discard_utterances=frozenset(map(folded, policy.discard_utterances)),
        discard_all_utterances=frozenset(map(folded, policy.discard_all_utterances)),
    )
