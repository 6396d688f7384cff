"""Texts for users in a policy: closure message and reminder, by language, with placeholders."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from app.domain.entry import END, Slug
from app.domain.errors import Fault

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
