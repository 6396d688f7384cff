"""Policies: presets, overrides, ranges, every fault at once; and the description of a policy."""

from typing import Any

import pytest
from hypothesis import given, settings

from app.domain.errors import InvalidPolicy
from app.domain.policy.describe import describe, notices, policy_view
from app.domain.policy.model import Overrides, Policy, PolicyVersion
from app.domain.policy.parse import PRESETS, policy_from
from tests.domain.strategies import policies

TEXTS = {"default": "bye"}
LANGUAGES = [f"{first}{second}" for first in "abcd" for second in "abcdefghijklmnopqrstuvwxyz"]


def problems_of(given: object) -> dict[str, str]:
    with pytest.raises(InvalidPolicy) as refused:
        policy_from(given)
    assert str(refused.value) == refused.value.message == "the policy holds what is not allowed"
    assert all(fault.what and fault.hint for fault in refused.value.faults)
    return {fault.where: f"{fault.what}; {fault.hint}" for fault in refused.value.faults}


def test_defaults_are_those_of_the_rules() -> None:
    """Every field, as in docs/rules.md."""
    assert policy_view(policy_from({})) == {
        "method": "inactivity",
        "closing": "proactive",
        "inactivity_minutes": 15,
        "inactivity_clock": "any",
        "closure_message": None,
        "reminder": None,
        "on_handoff": "continue",
        "on_escalated": "continue",
        "on_resolved": "end",
        "on_survey_answered": "continue",
        "discard_closes": True,
        "discard_utterances": [],
        "discard_all_utterances": [],
        "starts_with": [
            "message",
            "session.start",
            "conversation.started",
            "connect",
            "authorization",
            "agent.joined",
            "article.opened",
        ],
        "bot_starts": True,
        "agent_message_joins": True,
        "requires_bot": False,
        "abandon_after_hours": 168,
        "max_duration_hours": 168,
        "billing_block_minutes": 15,
        "epilogue_seconds": 0,
        "epilogue_intents": [],
        "transcript": "full",
        "redact_masks": [],
        "channels": {},
    }


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_policy(name: str) -> None:
    """Its values, and the defaults for what it does not name."""
    view = policy_view(policy_from({"preset": name}))

    assert view == policy_view(Policy()) | PRESETS[name]


@pytest.mark.parametrize(
    ("field", "least", "most"),
    (
        ("inactivity_minutes", 5, 60),
        ("abandon_after_hours", 1, 720),
        ("max_duration_hours", 1, 720),
        ("billing_block_minutes", 1, 1440),
        ("epilogue_seconds", 0, 600),
    ),
)
def test_range_of_numbers(field: str, least: int, most: int) -> None:
    """K08 for one: 5 and 60 accepted, 4 and 61 refused, with the range."""
    for allowed in (least, most):
        assert getattr(policy_from({field: allowed}), field) == allowed
    for refused in (least - 1, most + 1, "15", 15.5, True, None):
        found = problems_of({field: refused})
        assert list(found) == [field]
        assert f"from {least} to {most}" in found[field]


def test_a_whole_number_may_be_written_with_a_fraction_of_nothing() -> None:
    """JSON has one kind of number."""
    assert policy_from({"inactivity_minutes": 20.0}) == policy_from({"inactivity_minutes": 20})


def test_channel_may_be_silent_for_a_day() -> None:
    """5 to 1440 there (ruling 1)."""
    for allowed in (5, 1440):
        assert policy_from({"channels": {"sms": {"inactivity_minutes": allowed}}}).on("sms").inactivity_minutes == allowed
    for refused in (4, 1441):
        found = problems_of({"channels": {"sms": {"inactivity_minutes": refused}}})
        assert found == {"channels.sms.inactivity_minutes": f"{refused} given; a whole number from 5 to 1440 is expected"}


@pytest.mark.parametrize(
    ("field", "allowed"),
    (
        ("method", ("inactivity", "platform", "client")),
        ("closing", ("proactive", "on_new_intent", "on_return")),
        ("inactivity_clock", ("any", "user")),
        ("on_handoff", ("continue", "end", "split", "pause")),
        ("on_escalated", ("continue", "end")),
        ("on_resolved", ("continue", "end")),
        ("on_survey_answered", ("continue", "end")),
    ),
)
def test_choices(field: str, allowed: tuple[str, ...]) -> None:
    """Each of these values, nothing else."""
    for value in allowed:
        assert getattr(policy_from({field: value}), field) == value
    for refused, found in (("never", '"never"'), (1, "1"), (None, "null"), (["any"], '["any"]')):
        assert problems_of({field: refused}) == {field: f"{found} given; one of {', '.join(sorted(allowed))} is expected"}


@pytest.mark.parametrize("field", ("discard_closes", "requires_bot", "bot_starts", "agent_message_joins"))
def test_yes_or_no(field: str) -> None:
    assert getattr(policy_from({field: True}), field) is True
    assert getattr(policy_from({field: False}), field) is False
    assert problems_of({field: "yes"}) == {field: '"yes" given; true or false is expected'}


def test_all_faults_are_found_at_once() -> None:
    """In the order of the policy, each with its path; unknown fields by what there is."""
    found = problems_of(
        {
            "inactivity_minutes": 4,
            "timeout": 3,
            "closing": "x",
            "channels": {"SMS": {}, "web": {"inactivity_minutes": 1, "channels": {}}, "api": 7},
        }
    )

    assert list(found) == [
        "inactivity_minutes",
        "timeout",
        "closing",
        "channels.SMS",
        "channels.web.inactivity_minutes",
        "channels.web.channels",
        "channels.api",
    ]
    assert found["timeout"].startswith("there is no such field; the fields are inactivity_minutes, method, closing")
    assert found["channels.SMS"] == (
        '"SMS" given; 1 to 64 of a-z, 0-9, `_`, `.` and `-`, the first of them a letter or digit is expected'
    )
    assert found["channels.api"] == "7 given; an object of fields is expected"


def test_values_that_are_no_policy() -> None:
    assert problems_of([1]) == {"policy": "[1] given; an object of fields is expected"}
    assert problems_of({"channels": []}) == {"channels": "[] given; an object of channel names and their overrides is expected"}
    assert problems_of({"channels": {f"c{n}": {} for n in range(101)}}) == {
        "channels": "101 names given; at most 100 are allowed"
    }
    assert len(policy_from({"channels": {f"c{n}": {} for n in range(100)}}).channels) == 100
    assert policy_from({"channels": None}).channels == {}


def test_long_values_are_shortened() -> None:
    found = problems_of({"method": "x" * 100})["method"]

    assert found.startswith('"' + "x" * 59 + "… given; one of")
    assert problems_of({"method": "x" * 58})["method"].startswith('"' + "x" * 58 + '" given')


def test_unknown_preset() -> None:
    """By the names that there are; the rest is still looked at."""
    found = problems_of({"preset": "alexa", "method": "x"})

    assert found["preset"] == f'"alexa" given; one of {", ".join(PRESETS)} is expected'
    assert "method" in found
    assert problems_of({"preset": 5})["preset"].startswith("5 given; one of kore,")
    assert problems_of({"preset": ["kore"]})["preset"].startswith('["kore"] given; one of kore,')
    assert policy_from({"preset": None}) == Policy()


def test_preset_with_overrides() -> None:
    """Field by field, and within channels field by field; other channels stay and are added to."""
    policy = policy_from(
        {
            "preset": "aivo",
            "inactivity_clock": "any",
            "channels": {"sms": {"on_handoff": "split"}, "fax": {"inactivity_minutes": 60}},
        }
    )

    assert (policy.inactivity_minutes, policy.inactivity_clock) == (5, "any")
    assert (policy.on("sms").inactivity_minutes, policy.on("sms").on_handoff) == (1440, "split")
    assert policy.on("sms").on_survey_answered == "end"
    assert policy.on("fax").inactivity_minutes == 60
    assert policy.on("whatsapp").inactivity_minutes == 1440
    assert PRESETS["aivo"]["channels"]["sms"]["on_handoff"] == "end"


def test_preset_with_channels_that_are_none() -> None:
    """The fault is at its place."""
    assert list(problems_of({"preset": "aivo", "channels": {"sms": 5}})) == ["channels.sms"]
    assert list(problems_of({"preset": "aivo", "channels": 5})) == ["channels"]
    assert policy_from({"preset": "kore", "channels": {"sms": {"inactivity_minutes": 99}}}).on("sms").inactivity_minutes == 99


def test_channel_overrides_hold_there_alone() -> None:
    """Also to switch something off, and back on."""
    spoken = {"texts": TEXTS}
    policy = policy_from({"closure_message": spoken, "channels": {"sms": {"closure_message": None}, "web": {"method": "client"}}})

    assert policy.on("sms").closure_message is None
    assert policy.on("web").closure_message is not None
    assert (policy.on("web").method, policy.on("sms").method, policy.on("fax").method) == ("client", "inactivity", "inactivity")
    assert policy.on("fax") is policy


@pytest.mark.parametrize("off", (None, False, "off"))
def test_words_that_are_off(off: object) -> None:
    policy = policy_from({"closure_message": off, "reminder": off})

    assert (policy.closure_message, policy.reminder) == (None, None)


def test_words_that_are_on() -> None:
    policy = policy_from(
        {
            "closure_message": {"texts": {"default": "{minutes}{user_id}{bot}", "pt-BR": "a"}, "channels": ["web", "sms"]},
            "reminder": {"minutes": 14, "texts": TEXTS, "channels": None},
        }
    )

    assert policy.closure_message is not None
    assert policy.closure_message.channels == ("web", "sms")
    assert policy.closure_message.texts == {"default": "{minutes}{user_id}{bot}", "pt-BR": "a"}
    assert policy.reminder is not None
    assert (policy.reminder.minutes, policy.reminder.channels) == (14, None)


@pytest.mark.parametrize(
    ("message", "path", "says"),
    (
        (True, "", "true given; an object with texts, channels, to, or null for off, is expected"),
        ({}, ".texts", "it is required; add it"),
        ({"texts": {"pt": "x"}}, ".texts", "there is no text for `default`; it is required, since"),
        ({"texts": "bye"}, ".texts", '"bye" given; an object of language tags and their texts is expected'),
        ({"texts": {"default": 5}}, ".texts.default", "5 given; a text is expected"),
        ({"texts": {"default": ""}}, ".texts.default", "0 characters given; 1 to 2000 are allowed"),
        ({"texts": {"default": "x" * 2_001}}, ".texts.default", "2001 characters given"),
        (
            {"texts": {"default": "x", "portuguese!": "x"}},
            ".texts.portuguese!",
            '"portuguese!" given; a language tag such as `pt` or `pt-BR`, or `default`, is expected',
        ),
        (
            {"texts": {"default": "{name}"}},
            ".texts.default",
            "there is no placeholder {name}; there are {minutes}, {user_id}, {bot}",
        ),
        ({"texts": {"default": "{}"}}, ".texts.default", "there is no placeholder {}; there are"),
        (
            {"texts": {"default": "x"} | {f"a{chr(97 + n // 26)}{chr(97 + n % 26)}": "x" for n in range(100)}},
            ".texts",
            "101 names given; at most 100 are allowed",
        ),
        (
            {"texts": TEXTS, "channels": "web"},
            ".channels",
            '"web" given; a list of channel names, or null for all channels, is expected',
        ),
        ({"texts": TEXTS, "channels": ["WEB"]}, ".channels[0]", '"WEB" given; 1 to 64 of a-z'),
        ({"texts": TEXTS, "channels": ["web", 5]}, ".channels[1]", "5 given; 1 to 64 of a-z"),
        ({"texts": TEXTS, "channels": [f"c{n}" for n in range(101)]}, ".channels", "101 items given; at most 100 are allowed"),
        ({"texts": TEXTS, "to": "none"}, ".to", '"none" given; one of all, interactive is expected'),
        ({"texts": TEXTS, "minutes": 5}, ".minutes", "there is no such field; the fields are texts, channels, to"),
    ),
)
def test_words_that_are_wrong(message: object, path: str, says: str) -> None:
    found = problems_of({"closure_message": message})

    assert list(found) == [f"closure_message{path}"]
    assert found[f"closure_message{path}"].startswith(says)


def test_texts_at_their_limits() -> None:
    texts = {"default": "x" * 2_000} | dict.fromkeys(LANGUAGES[:99], "x")

    assert policy_from({"closure_message": {"texts": texts}}).closure_message is not None


def test_reminder_needs_minutes_that_fit() -> None:
    """Less than the silence, wherever it applies."""
    assert list(problems_of({"reminder": {"texts": TEXTS}})) == ["reminder.minutes"]
    assert "from 1 to 1439" in problems_of({"reminder": {"texts": TEXTS, "minutes": 0}})["reminder.minutes"]
    assert "from 1 to 1439" in problems_of({"reminder": {"texts": TEXTS, "minutes": 1440}})["reminder.minutes"]
    late = problems_of({"reminder": {"texts": TEXTS, "minutes": 15}})
    channel = problems_of(
        {"reminder": {"texts": TEXTS, "minutes": 14}, "channels": {"web": {"inactivity_minutes": 14}, "sms": {}}}
    )

    assert late == {"reminder.minutes": "15 given; it must be less than the 15 minutes of silence there"}
    assert channel == {"channels.web.reminder.minutes": "14 given; it must be less than the 14 minutes of silence there"}
    long = {"minutes": 1439, "texts": TEXTS}
    assert policy_from({"channels": {"sms": {"inactivity_minutes": 1440, "reminder": long}}}).on("sms").reminder is not None


@settings(deadline=None)
@given(policies())
def test_policy_survives_being_saved(policy: Policy) -> None:
    """Saved as JSON it is read back as the same policy."""
    assert policy_from(policy_view(policy)) == policy


def test_terms_are_resolved_once() -> None:
    """For each channel with overrides, and once for all the others."""
    version = PolicyVersion(7, 5, policy_from({"preset": "aivo", "reminder": {"minutes": 2, "texts": TEXTS}}))

    assert version.terms("sms") is version.terms("sms")
    assert version.terms("fax") is version.terms("other")
    assert (version.terms("sms").silence_ms, version.terms("fax").silence_ms) == (86_400_000, 300_000)
    assert (version.terms("fax").version, version.terms("fax").effective_at_ms) == (7, 5)
    assert version.terms("fax").remind_before_ms == 120_000


def test_notices() -> None:
    """K25: lazy modes are deprecated, on a channel too, each once."""
    assert notices(policy_from({})) == []
    assert notices(policy_from({"channels": {"sms": {}}})) == []
    mixed = notices(policy_from({"closing": "on_return", "channels": {"sms": {}, "web": {"closing": "on_new_intent"}}}))

    assert len(mixed) == 2
    assert mixed[0].startswith(
        "Closing `on_return` is deprecated: a session stays open until its user comes back. Choose `proactive`"
    )
    assert mixed[1].startswith("On channel `web`: Closing `on_new_intent` is deprecated")


@pytest.mark.parametrize(
    ("policy", "expected"),
    (
        ({"method": "platform", "closing": "on_return"}, ["`closing` has no effect: under method `platform` silence does not"]),
        (
            {"closing": "on_return", "closure_message": {"texts": TEXTS}},
            ["Closing", "`closure_message` has no effect: silence"],
        ),
        ({"method": "client", "reminder": {"texts": TEXTS, "minutes": 1}}, ["`reminder` has no effect: silence alone does not"]),
        (
            {"closure_message": {"texts": TEXTS, "channels": []}},
            ["`closure_message` has no effect: its list of channels is empty"],
        ),
        ({"abandon_after_hours": 24}, ["`abandon_after_hours` has no effect: silence closes a session before"]),
        ({"method": "platform", "max_duration_hours": 24}, ["`abandon_after_hours` has no effect: it is longer than `max_du"]),
        ({"method": "platform", "abandon_after_hours": 24, "max_duration_hours": 24}, []),
        ({"epilogue_intents": ["thanks"]}, ["`epilogue_intents` has no effect: `epilogue_seconds` is 0"]),
        ({"epilogue_intents": ["thanks"], "epilogue_seconds": 9}, []),
        ({"method": "client", "epilogue_seconds": 9}, ["`epilogue_seconds` has no effect: under method `client` every"]),
        ({"bot_starts": False, "starts_with": ["article.opened"]}, ["`bot_starts` has no effect: `starts_with` holds neither"]),
        ({"bot_starts": False, "starts_with": ["connect"]}, []),
        ({"redact_masks": ["####"]}, ["`redact_masks` has no effect: `transcript` is `full`"]),
        ({"redact_masks": ["####"], "transcript": "redacted"}, []),
    ),
)
def test_settings_without_effect_have_a_notice(policy: dict[str, Any], expected: list[str]) -> None:
    found = notices(policy_from(policy))

    assert len(found) == len(expected)
    assert all(notice.startswith(start) for notice, start in zip(found, expected, strict=True))


NEVER_SAID = "`closure_message` has no effect: "


def test_notice_of_one_channel_names_it() -> None:
    """Not where it holds on every channel; and the first of the channels where it holds on several."""
    quiet = {"closure_message": {"texts": TEXTS}}
    lazy = {"method": "platform", "max_duration_hours": 720}
    found = notices(policy_from({**quiet, "channels": {"sms": lazy, "fax": lazy}}))

    assert found == [f"On channel `sms`: {NEVER_SAID}silence alone does not close a session under this policy."]
    assert notices(policy_from({**quiet, "max_duration_hours": 1, "inactivity_minutes": 60})) == []
    long = {"inactivity_minutes": 90, "max_duration_hours": 1}
    assert notices(policy_from({**quiet, "channels": {"sms": long}})) == [
        f"On channel `sms`: {NEVER_SAID}a session closes after 1 hour as `max_duration`, before the silence is over."
    ]


@pytest.mark.parametrize(
    ("policy", "sentence"),
    (
        ({"starts_with": ["article.opened", "connect"]}, "Only these entries start a session: `article.opened` and `connect`."),
        ({"bot_starts": False}, "A message or `connect` of the bot alone starts none."),
        ({"agent_message_joins": False}, "A message by an agent who has not joined is no hand-off."),
        (
            {"discard_utterances": ["quit", "forget it"]},
            'A user who says only "quit" and "forget it" does what `discard` does.',
        ),
        ({"discard_all_utterances": ["all"]}, 'A user who says only "all" does what `discard.all` does.'),
        (
            {"epilogue_seconds": 60},
            "A user's message without an intent within 60 seconds of the close is late and opens nothing.",
        ),
        (
            {"epilogue_seconds": 60, "epilogue_intents": ["thanks"]},
            "A user's message without an intent or with `thanks` within 60 seconds of the close is late and opens nothing.",
        ),
    ),
)
def test_settings_in_words(policy: dict[str, Any], sentence: str) -> None:
    """Said where they differ from the default, and not otherwise."""
    assert sentence in described(**policy)[0]
    assert sentence not in described()[0]


def described(**policy: Any) -> tuple[list[str], list[tuple[int, str, str]]]:  # noqa: ANN401  a policy's fields
    found = describe(policy_from(policy))
    return found["words"], [(step["after_minutes"], step["event"], step["what"]) for step in found["timeline"]]


def test_default_policy_in_words() -> None:
    words, timeline = described()

    assert words == [
        "A session starts with the first entry of a conversation in which none is open.",
        "After 15 minutes of silence it closes by itself; any entry restarts the clock.",
        "The user gets no message.",
        "A hand-off to a human does not end the session.",
        "It is closed by `chat.closed`, `session.end`, `interrupted`, `resolved` and `discard`.",
        "It goes on after `escalated` and `survey.answered` within 24 hours of `survey.sent`.",
        "Each started block of 15 minutes with user activity is one billing session.",
    ]
    assert timeline == [(0, "session.opened", "the user's first entry"), (15, "session.closed", "closes as `inactivity`")]


def test_talkative_policy_in_words() -> None:
    words, timeline = described(
        inactivity_minutes=60,
        inactivity_clock="user",
        closure_message={"texts": TEXTS, "channels": ["web", "sms", "fax"]},
        reminder={"texts": TEXTS, "minutes": 1, "channels": ["web", "sms"]},
        on_handoff="pause",
        on_escalated="end",
        on_resolved="end",
        on_survey_answered="end",
        requires_bot=True,
        billing_block_minutes=90,
    )

    assert words[1:] == [
        "After 1 hour of silence it closes by itself; only the user's entries restart the clock, once the user has taken part.",
        "The user is reminded 1 minute before that, on web and sms, unless an entry comes.",
        "A user who took part gets a message when silence closes it, on web, sms and fax.",
        "After a hand-off to a human there is no silence until `agent.left`.",
        (
            "It is closed by `chat.closed`, `session.end`, `interrupted`, `escalated`, `resolved`, "
            "`survey.answered` within 24 hours of `survey.sent` and `discard`."
        ),
        "A session in which no bot takes part is kept but not counted.",
        "Each started block of 90 minutes with user activity is one billing session.",
    ]
    assert timeline == [
        (0, "session.opened", "the user's first entry"),
        (59, "session.reminder", "the reminder"),
        (60, "session.closure_message", "the closure message"),
        (60, "session.closed", "closes as `inactivity`"),
    ]


@pytest.mark.parametrize(
    ("closing", "starts"),
    (("on_new_intent", "a new intent or an invalid one of the user starts"), ("on_return", "the user's next entry starts")),
)
def test_lazy_policy_in_words(closing: str, starts: str) -> None:
    words, timeline = described(closing=closing, closure_message={"texts": TEXTS}, abandon_after_hours=48)

    assert words[1] == f"After 15 minutes of silence, {starts} another session; any entry restarts the clock."
    assert words[2] == "A hand-off to a human does not end the session."
    assert timeline[1:] == [
        (15, "silence", "from here on the user's return may start another session"),
        (48 * 60, "session.closed", "closes as `abandoned`"),
    ]


@pytest.mark.parametrize(("method", "starts"), (("platform", "from `session.start`"), ("client", "one `client_session_id`")))
def test_methods_without_silence_in_words(method: str, starts: str) -> None:
    words, timeline = described(method=method, max_duration_hours=2, on_handoff="split")

    assert starts in words[0]
    assert words[1] == "Silence does not close it."
    assert words[2].endswith("the next session is of trade `agent`, until the human leaves.")
    assert timeline[1:] == [(120, "session.closed", "closes as `max_duration`")]


def test_longest_duration_before_the_silence_in_words() -> None:
    """Then nothing is said to the user: it is not the silence that closes."""
    overrides = {"inactivity_minutes": 90, "max_duration_hours": 1, "on_handoff": "end"}
    policy = policy_from({"closure_message": {"texts": TEXTS, "channels": []}, "channels": {"sms": overrides}})
    found = describe(policy)
    sms = found["channels"]["sms"]

    assert [step["event"] for step in sms["timeline"]] == ["session.opened", "session.closed"]
    assert sms["timeline"][-1] == {"after_minutes": 60, "event": "session.closed", "what": "closes as `max_duration`"}
    assert "A hand-off to a human closes it as `handoff`." in sms["words"]
    assert "A user who took part gets a message when silence closes it, on no channel." in found["words"]
    assert found["policy"] == policy_view(policy)
    assert len(found["notices"]) == 2


def test_words_on_every_channel_in_words() -> None:
    words, _ = described(closure_message={"texts": TEXTS})

    assert words[2] == "A user who took part gets a message when silence closes it, on every channel."
    words, _ = described(closure_message={"texts": TEXTS, "to": "all"})

    assert words[2] == "The user gets a message when silence closes it, on every channel."


def test_silence_and_longest_duration_at_once_in_words() -> None:
    """The silence closes, as it does in a session."""
    words, timeline = described(inactivity_minutes=60, max_duration_hours=1)

    assert words[1].startswith("After 1 hour of silence")
    assert timeline[-1] == (60, "session.closed", "closes as `inactivity`")


def test_hours_in_words() -> None:
    found = describe(policy_from({"channels": {"sms": {"inactivity_minutes": 1440}}}))

    assert found["channels"]["sms"]["words"][1].startswith("After 24 hours of silence")


def test_channel_can_differ_in_every_field_but_channels() -> None:
    """The overrides derive from the same types: a field added to one is in the other."""
    assert {*Overrides.__struct_fields__, "channels"} == set(Policy.__struct_fields__)
    assert all(
        policy_from({"channels": {"web": {name: value}}}) for name, value in policy_view(Policy()).items() if name != "channels"
    )


@pytest.mark.parametrize("starter", ("message", "connect"))
def test_a_bot_that_may_not_start_is_noticed_where_it_could(starter: str) -> None:
    """`bot_starts` has an effect if one of the two types that a bot starts with may open a session."""
    words = " ".join(notices(policy_from({"bot_starts": False, "starts_with": [starter]})))
    without = " ".join(notices(policy_from({"bot_starts": False, "starts_with": ["article.opened"]})))

    assert "bot_starts" not in words
    assert "bot_starts" in without
