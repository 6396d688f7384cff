"""Personal data in texts is found, other numbers are left, and what a transcript keeps follows the policy."""

import time
from typing import Any

import pytest

from app.domain.errors import InvalidPolicy
from app.domain.policy.parse import policy_from
from app.domain.redaction import redact
from tests.domain.talk import Talk

FOUND = {
    "[email]": ("ann@example.com", "Ann.O'Neil+shop@mail.example.co.uk", "ñandú@correo.example"),
    "[phone]": ("+54 11 2233-4455", "+5491122334455", "0049 30 901820", "(011) 4222-3344", "030/901820-11", "612 345 678"),
    "[card]": ("4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "6011000990139424", "4222222222222"),
    "[iban]": ("DE89 3704 0044 0532 0130 00", "GB29NWBK60161331926819", "NO93 8601 1117 947", "gb29 nwbk 6016 1331 9268 19"),
    "[ip]": ("192.168.100.200", "8.8.8.8", "2001:db8::1", "fe80::1ff:fe23:4567:890a", "::ffff:192.0.2.128"),
}
LEFT = (
    "order 12345678", "2026-11-21", "21.11.2026 at 10:30", "10:00:00", "version 1.2.3", "3.14159", "a@b", "@ann",
    "1,000,000", "room 12 34", "sku-123-456", "256.1.1.1", "::", "ABC1234567",
)  # fmt: skip


@pytest.mark.parametrize(("label", "text"), [(label, text) for label, texts in FOUND.items() for text in texts])
def test_personal_data_is_found_wherever_it_stands(label: str, text: str) -> None:
    """Alone, in a sentence, in brackets, twice, and after something that looks alike."""
    assert redact(text).replace("Ann.O'", "") == label
    assert redact(f"it is {text}, thanks").replace("Ann.O'", "") == f"it is {label}, thanks"
    assert redact(f"({text}) and {text}.").replace("Ann.O'", "") == f"({label}) and {label}."
    assert label in redact(f"AB12 some other words\n{text}")


@pytest.mark.parametrize("text", LEFT)
def test_other_numbers_and_words_are_left(text: str) -> None:
    """Orders, dates, times, versions, amounts, and numbers whose check digits are wrong."""
    assert redact(text) == text


def test_a_card_that_follows_another_number_is_found() -> None:
    """The check is made from each group of digits on."""
    assert redact("1234 4111 1111 1111 1111").endswith("[card]")
    assert redact("4111 1111 1111 1111 12/28") == "[card] 12/28"


def test_masks_are_texts_of_the_bots_own() -> None:
    """A digit, a letter, either; in any case, as whole words; what has a meaning in patterns stands for itself."""
    masks = ("ORD-####", "?#*", "a.b+", "(x)")

    assert redact("ord-1234 ORD-12345 x-ORD-1234", masks) == "[redacted] ORD-12345 x-[redacted]"
    assert redact("A1z A11 aab 11a", masks) == "[redacted] [redacted] aab 11a"
    assert redact("a.b+ axb+ a.bb", masks) == "[redacted] axb+ a.bb"


@pytest.mark.parametrize(
    "part", ("1 ", "11 ", "AB12", "AB12 ", "DE89 ", "a@", "%", "a.", "1.", "1:", ":", "+", "(1", "- ", "a@a.", "1-")
)
def test_a_hostile_text_costs_no_more_than_a_long_one(part: str) -> None:
    """Linear: of 8,000 characters of each, and of half of them, the time is about the double."""
    text = part * (8_000 // len(part))
    started = time.process_time()
    redact(text, ("ORD-####", "?" * 60))
    took_s = time.process_time() - started

    assert took_s < 1


TEXT = "mail ann@example.com about ORD-1234"
JSON: dict[str, Any] = {
    "metadata": {"from": "+5491122334455", "list": [{"card": "4111111111111111"}], "n": 4111111111111111},
    "context": {"topic": "ann@example.com"},
    "session_metadata": {"phone": "+5491122334455"},
}


def test_a_full_transcript_keeps_what_the_bot_reported() -> None:
    """The default."""
    talk = Talk()
    talk.say("user", TEXT, at=0, **JSON)
    ((_, message),) = talk.messages

    assert (message.text, message.rest) == (TEXT, JSON)


def test_a_redacted_transcript_keeps_texts_without_personal_data() -> None:
    """At any depth of the message's JSON. The session's own data stays as the bot gave it: it is how a bot finds its user."""
    talk = Talk(transcript="redacted", redact_masks=["ORD-####"])
    talk.say("user", TEXT, at=0, **JSON)
    ((_, message),) = talk.messages

    assert message.text == "mail [email] about [redacted]"
    assert message.rest == {
        "metadata": {"from": "[phone]", "list": [{"card": "[card]"}], "n": 4111111111111111},
        "context": {"topic": "[email]"},
        "session_metadata": {"phone": "[phone]"},
    }
    assert talk.open.session_metadata == JSON["session_metadata"]


def test_a_transcript_without_texts_keeps_the_rest() -> None:
    """Role, type, intent and instants, which statistics are made of."""
    talk = Talk(transcript="none")
    talk.say("user", TEXT, at=0, intent="order.status", **JSON)
    ((_, message),) = talk.messages

    assert (message.text, message.rest, message.intent) == (None, None, "order.status")


def test_a_channel_may_differ() -> None:
    """On the channel that needs it, and on no other."""
    texts = []
    for channel in ("web", "whatsapp"):
        talk = Talk(channels={"whatsapp": {"transcript": "none"}})
        talk.say("user", "hi", channel=channel)
        texts.append(talk.messages[0][1].text)

    assert texts == ["hi", None]


def test_late_and_unassigned_entries_are_redacted_too() -> None:
    """They take other ways into the archive, and into the webhook `session.updated`."""
    talk = Talk(transcript="redacted")
    talk.say("system", "ann@example.com", at=0, type="resolved")
    talk.say("user", "hi", at=1)
    talk.say("system", at=2, type="session.end")
    talk.say("system", "ann@example.com", at=3, type="resolved")
    stored = repr([(each.messages, each.events, each.unassigned, each.state) for each in talk.decisions])

    assert "ann@example.com" not in stored
    assert stored.count("[email]") == 3  # without a session, late, and in the event of the late one


def test_rules_see_the_text_that_is_not_stored() -> None:
    """An utterance discards, whatever the transcript keeps of it."""
    talk = Talk(transcript="none", discard_utterances=["discard"])
    talk.say("user", "hi", at=0)
    talk.say("user", "discard", at=1)

    assert [session.reason for session in talk.closed] == ["discard"]


@pytest.mark.parametrize("wrong", ([""], ["#"], ["#" * 65], ["##"] * 33, "ORD-##"))
def test_a_mask_has_2_to_64_characters(wrong: object) -> None:
    """And a bot has up to 32 of them."""
    with pytest.raises(InvalidPolicy):
        policy_from({"redact_masks": wrong})


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ("+12345678", "[phone]"),
        ("0012345678", "[phone]"),
        ("00123456", "[phone]"),
        ("+1234567", "+1234567"),
        ("12345678", "12345678"),
        ("123456789", "[phone]"),
        ("+123456789012345", "[phone]"),
        ("+1234567890123456", "+1234567890123456"),
        ("on 2026-11-21 10, or 21.11.2026 11", "on 2026-11-21 10, or 21.11.2026 11"),
    ),
)
def test_the_lengths_of_phone_numbers(text: str, expected: str) -> None:
    """From 8 digits with a prefix and from 9 without, up to 15; a date with an hour is none."""
    assert redact(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    (
        ("411111111117", "[phone]"),  # its check digit is right, but no card has 12 digits
        ("4111111111111111 123", "[card] 123"),
        ("4111111111111111 35", "[card] 35"),  # the check digit of the first 17 digits is right, too
        ("4111111111111111 35-12", "[card] 35-12"),
        ("4111111111111111123", "4111111111111111123"),
        ("4111111111111111x y", "4111111111111111x y"),
        ("41111111111111112 34", "41111111111111112 34"),
    ),
)
def test_the_lengths_of_cards(text: str, expected: str) -> None:
    """13 to 19 digits, and whole groups of them."""
    assert redact(text) == expected


def test_an_iban_is_as_long_as_its_country_s() -> None:
    """Words may follow."""
    assert redact("DE89370400440532013000 thanks") == "[iban] thanks"
    assert redact("XX89370400440532013000 thanks") == "XX89370400440532013000 thanks"


def test_masks_reach_what_is_nested() -> None:
    """Objects and lists of metadata."""
    talk = Talk(transcript="redacted", redact_masks=["ORD-####"])
    talk.say("user", "ORD-1234", metadata={"a": {"b": "ORD-1234"}, "c": ["ORD-1234", 5]})
    ((_, message),) = talk.messages

    assert message.text == "[redacted]"
    assert (message.rest or {})["metadata"] == {"a": {"b": "[redacted]"}, "c": ["[redacted]", 5]}
