"""The words that users are told: which text fits a language, and what stands for the placeholders in it."""

import re
from collections.abc import Iterator, Mapping

PLACEHOLDERS = ("minutes", "user_id", "bot")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def placeholders_in(text: str) -> Iterator[str]:
    return (match[1] for match in _PLACEHOLDER.finditer(text))


def text_in(texts: Mapping[str, str], language: str | None) -> tuple[str, str]:
    """The tag and the text that fit `language` best: `pt-BR`, then `pt`, then `default`."""
    by_tag = {tag.lower(): tag for tag in texts}
    wanted = (language or "").lower().replace("_", "-")
    while wanted:
        if wanted in by_tag:
            return by_tag[wanted], texts[by_tag[wanted]]
        wanted = wanted.rpartition("-")[0]
    return "default", texts["default"]


def filled(text: str, values: Mapping[str, str]) -> str:
    """`text` with its placeholders filled, in one pass: what is filled in is never read as a placeholder."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text)
