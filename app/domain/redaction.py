"""Redaction, before anything is stored: a transcript keeps an entry's texts whole, without personal data, or not at all.

Every pattern is bounded, so that the time is linear in the length of the text, whatever it holds; the masks of a policy have no
repetition at all. A number is a card or an IBAN only if its check digits are right.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Any

from msgspec import structs

from app.domain.entry import Entry
from app.domain.policy.model import Policy

_JSON_FIELDS = ("context", "metadata", "session_metadata")
_WITHOUT_TEXT: dict[str, Any] = {"text": None, **dict.fromkeys(_JSON_FIELDS)}
_MASK_CHARACTERS = {"#": "[0-9]", "?": r"[^\W\d_]", "*": r"[^\W_]"}
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
    }.items()
    for country in countries.split()
}
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_LONGEST_CARD, _SHORTEST_CARD = 19, 13
_LONGEST_PHONE, _SHORTEST_PHONE, _SHORTEST_LOCAL_PHONE = 15, 8, 9

_EMAIL = re.compile(r"(?<![\w.+-])[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_IBAN = re.compile(r"(?<![^\W_])[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11,28}")
_CARD = re.compile(r"(?<![0-9])[0-9]{2,19}(?:[ -][0-9]{2,7}){0,6}")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{3,39}(?:\.[0-9]{1,3}){0,3}(?![\w:])")
_PHONE = re.compile(r"(?<![\w.+-])(?:\+|\((?=[0-9]{1,5}\)))?[0-9](?:[ ().\-/]{0,2}[0-9]){6,16}(?![\w-])")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9])|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{4}(?![0-9])")


def to_store(entry: Entry, policy: Policy) -> Entry:
    """The entry as its transcript keeps it under this policy; `policy` holds on the entry's channel."""
    if policy.transcript == "full":
        return entry
    if policy.transcript == "none":
        return structs.replace(entry, **_WITHOUT_TEXT)
    masks = policy.redact_masks
    given = {name: getattr(entry, name) for name in _WITHOUT_TEXT}
    return structs.replace(entry, **{name: _redacted(value, masks) for name, value in given.items()})


def redact(text: str, masks: tuple[str, ...] = ()) -> str:
    """The text with `[email]`, `[iban]`, `[card]`, `[ip]`, `[phone]` and, for the masks, `[redacted]` for what is personal."""
    if masks:
        text = _pattern_of(masks).sub("[redacted]", text)
    text = _EMAIL.sub("[email]", text) if "@" in text else text
    text = _checked(_IBAN, text, _iban_in, "[iban]")
    text = _checked(_CARD, text, _card_in, "[card]")
    text = _IPV6.sub(_ipv6, text) if ":" in text else text
    text = _IPV4.sub("[ip]", text) if "." in text else text
    return _PHONE.sub(_phone, text)


def _redacted(value: Any, masks: tuple[str, ...]) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(value, str):
        return redact(value, masks)
    if isinstance(value, dict):
        return {name: _redacted(inner, masks) for name, inner in value.items()}
    return [_redacted(inner, masks) for inner in value] if isinstance(value, list) else value


def _checked(pattern: re.Pattern[str], text: str, length_of: Callable[[str], int], label: str) -> str:
    """The text with each beginning of a match that passes the check replaced; `length_of`: how much of a match that is."""
    parts, at = [], 0
    match = pattern.search(text)
    while match is not None:
        length = length_of(match[0])
        end = match.start() + length
        if length and not text[end : end + 1].isalnum():
            parts += [text[at : match.start()], label]
            at = end
        match = pattern.search(text, max(at, match.start() + 1))
    return "".join([*parts, text[at:]])


def _iban_in(text: str) -> int:
    """Length of the IBAN that the text begins with (ISO 13616): as long as its country's, and 1 modulo 97 read as a number."""
    places = [at for at, character in enumerate(text) if character != " "][: _IBAN_LENGTHS.get(text[:2].upper(), 0)]
    digits = "".join(str(int(text[at], 36)) for at in places[4:] + places[:4])
    complete = len(places) == _IBAN_LENGTHS.get(text[:2].upper())
    return places[-1] + 1 if complete and int(digits) % 97 == 1 else 0


def _card_in(text: str) -> int:
    """Length of the longest card number that the text begins with and that ends with a group of digits (ISO/IEC 7812)."""
    places = [at for at, character in enumerate(text) if character.isdigit()]
    for digits in range(min(len(places), _LONGEST_CARD), _SHORTEST_CARD - 1, -1):
        end = places[digits - 1] + 1
        if not text[end : end + 1].isdigit() and _passes_luhn([int(text[at]) for at in places[:digits]]):
            return end
    return 0


def _passes_luhn(digits: list[int]) -> bool:
    """Every second digit from the right counts double, as the sum of its digits; the whole is a multiple of 10."""
    return sum(digit if at % 2 == 0 else _DOUBLED[digit] for at, digit in enumerate(reversed(digits))) % 10 == 0


def _ipv6(match: re.Match[str]) -> str:
    try:
        IPv6Address(match[0])
    except ValueError:
        return match[0]
    return "[ip]"


def _phone(match: re.Match[str]) -> str:
    """A number with `+` or `00`, or one of 9 digits or more; dates are none."""
    digits = sum(character.isdigit() for character in match[0])
    international = match[0].startswith(("+", "00"))
    if digits > _LONGEST_PHONE or digits < (_SHORTEST_PHONE if international else _SHORTEST_LOCAL_PHONE):
        return match[0]
    return match[0] if _DATE.match(match[0]) else "[phone]"


@lru_cache(maxsize=1_000)
def _pattern_of(masks: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(masks, key=len, reverse=True)
    options = ("".join(_MASK_CHARACTERS.get(character, re.escape(character)) for character in mask) for mask in longest_first)
    return re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)", re.IGNORECASE)
