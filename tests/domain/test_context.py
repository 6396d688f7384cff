"""The dialog, the variables, and what is cleared when: K20 to K24."""

import math
from typing import Any

import pytest

from app.domain.errors import InvalidVariable, StateTooLarge
from app.domain.instants import DAY_MS
from app.domain.json_value import DEEPEST
from app.domain.records import DeleteVariable, SetVariable
from app.domain.rules.ending import MOST_HISTORIC_TAGS, with_historic
from app.domain.session_view import context_view, variables_view
from tests.domain.talk import NOON_MS, Talk, minute, nested

NAME = "a name has 1 to 128 characters, all of them printable"
TTL = "a TTL is more than 0 and at most 31622400 seconds"
HINTS = {
    NAME: "choose another",
    TTL: "choose another",
    "it takes 8193 bytes as JSON; at most 8192 are allowed": "shorten it",
    "it holds a whole number beyond 2^53": "send such a number as a string",
    "it is nested deeper than 8 levels": "flatten it, or send it as a string",
    "it holds the character NUL": "leave it out",
    "it holds an object of more than 64 keys": "send fewer, or a list",
    "it holds more than 2000 values": "send fewer, or a string",
    "it holds half of a surrogate pair, which is no character": "send whole ones",
    "it holds a number that JSON does not have, such as NaN": "send null or a string",
}
EMPTY: dict[str, Any] = {"context": None, "tags": [], "historic_tags": [], "tones": {}}


def talk_with_dialog(**policy: Any) -> Talk:  # noqa: ANN401  a policy's fields
    """Context, two rounds of tags and two tones."""
    talk = Talk(**policy)
    talk.say("user", "a", tags=["old"], sentiment={"angry": 0.9, "sad": 0.1}, at=0)
    talk.say("user", "b", tags=["new"], sentiment={"angry": 0.2}, context={"topic": "shoes"}, at=1)
    return talk


def test_dialog_is_as_seen_last() -> None:
    """The context is replaced, tags displace tags, levels of tones are kept by tone."""
    talk = talk_with_dialog()
    talk.say("bot", "c", at=2)

    assert context_view(talk.state) == {
        "context": {"topic": "shoes"},
        "tags": ["new"],
        "historic_tags": [["old"]],
        "tones": {"angry": 0.2, "sad": 0.1},
    }


def test_no_dialog_is_an_empty_one() -> None:
    talk = Talk()
    talk.say("user", "a")

    assert talk.state.dialog is None
    assert context_view(talk.state) == EMPTY


def test_historic_sets_have_the_latest_last() -> None:
    """Ruling 10: each report replaces the current set, and the one before joins the historic sets, whole."""
    talk = Talk()
    for at, tags in enumerate((["a", "b"], ["c"], ["b", "d"], ["d", "e"], ["f"])):
        talk.say("user", "x", tags=tags, at=at)

    assert talk.state.dialog is not None
    assert talk.state.dialog.historic_tags == (("a", "b"), ("c",), ("b", "d"), ("d", "e"))


def test_historic_sets_are_bounded() -> None:
    """In number and in tags; the oldest are dropped."""
    talk = Talk()
    for number in range(70):
        talk.say("user", "x", tags=[f"t{number}"], at=0)

    assert talk.state.dialog is not None
    assert talk.state.dialog.historic_tags == tuple((f"t{number}",) for number in range(5, 69))
    for number in range(6):
        talk.say("user", "x", tags=[f"{number}-{tag}" for tag in range(60)], at=0)
    assert [tags[0] for tags in talk.state.dialog.historic_tags] == ["1-0", "2-0", "3-0", "4-0"]


def test_command_tags_are_no_tags_of_the_dialog() -> None:
    talk = talk_with_dialog()
    talk.say("user", "c", tags=["new session", "vip"], at=2)

    assert context_view(talk.state)["tags"] == ["vip"]


def test_close_clears_the_dialog() -> None:
    """K21; the current set joins the historic ones."""
    talk = talk_with_dialog()
    talk.close(at=2)

    assert context_view(talk.state) == EMPTY | {"historic_tags": [["old"], ["new"]]}


def test_close_without_tags_leaves_no_dialog() -> None:
    talk = Talk()
    talk.say("user", "a", context={"topic": "shoes"}, at=0)
    talk.close(at=1)

    assert talk.state.dialog is None


@pytest.mark.parametrize("fields", ({"type": "discard.all"}, {"tags": ["discard all"]}))
def test_discard_all(fields: dict[str, Any]) -> None:
    """K23: context, tags and tones go, variables and the session stay."""
    talk = talk_with_dialog()
    talk.do(SetVariable("city", "Rio"), at=1)

    answer = talk.say("user", at=2, **fields)

    assert answer.session == "continued"
    assert answer.closed == ()
    assert context_view(talk.state) == EMPTY
    assert "city" in talk.state.variables


@pytest.mark.parametrize("fields", ({"type": "discard"}, {"tags": ["discard"]}))
def test_discard_that_continues(fields: dict[str, Any]) -> None:
    """K24: the last of the historic sets becomes the current one, and they are cleared; tones stay."""
    talk = talk_with_dialog(discard_closes=False)

    answer = talk.say("user", at=2, **fields)

    assert answer.closed == ()
    assert context_view(talk.state) == EMPTY | {"tags": ["old"], "tones": {"angry": 0.2, "sad": 0.1}}


def test_discard_closes() -> None:
    """K20 and ruling 2; the entry belongs to the session that it closes."""
    talk = talk_with_dialog()
    answer = talk.say("user", type="discard", tags=["last"], at=2)

    assert (answer.session, answer.sequence) == ("continued", 3)
    assert talk.closings == [("discard", 2)]
    assert (talk.closed[0].closing_rule, talk.closed[0].closed_by) == ("K20", "m3")
    assert talk.closed[0].tags == ("last",)
    assert context_view(talk.state) == EMPTY | {"tags": ["new"]}


def test_discard_with_no_dialog() -> None:
    talk = Talk(discard_closes=False)
    talk.say("user", "a", at=0)
    talk.say("user", type="discard", at=1)

    assert talk.state.dialog is None


def test_discard_between_sessions_clears_what_is_left() -> None:
    """Historic sets alone survive a close: "discard" makes the last of them current (K24)."""
    for kind, tags in (("discard", ["new"]), ("discard.all", [])):
        talk = talk_with_dialog()
        talk.close(at=2)
        answer = talk.say("user", type=kind, at=3)

        assert answer.session == "late"
        assert context_view(talk.state) == EMPTY | {"tags": tags}
        assert talk.closings == [("api", 2)]


def test_variables_without_a_ttl_end_with_the_session() -> None:
    """K21: those with one live on until it ends."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.do(SetVariable("city", {"name": "Rio"}), at=1)
    talk.do(SetVariable("vip", 1, ttl_ms=30 * 60_000), at=1)
    assert variables_view(talk.state, NOON_MS + 60_000) == {
        "city": {"value": {"name": "Rio"}, "expires_at": None},
        "vip": {"value": 1, "expires_at": "2026-11-21T12:31:00.000Z"},
    }
    decision = talk.close(at=2)

    assert list(variables_view(talk.state, NOON_MS + 2 * 60_000)) == ["vip"]
    assert minute(decision.keep_until_ms) == 2 + 24 * 60
    talk.say("user", "b", at=30)
    assert list(talk.state.variables) == ["vip"]
    talk.say("user", "c", at=31)
    assert talk.state.variables == {}


def test_expired_variable_is_not_shown() -> None:
    """Even before anything is decided on the conversation; a TTL is over at its end."""
    talk = Talk()
    talk.do(SetVariable("vip", 1, ttl_ms=60_000), at=0)

    assert list(variables_view(talk.state, NOON_MS + 59_999)) == ["vip"]
    assert variables_view(talk.state, NOON_MS + 60_000) == {}


def test_variable_can_be_replaced_and_deleted() -> None:
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.do(SetVariable("a", 1, ttl_ms=60_000), at=0)
    talk.do(SetVariable("b", 2), at=0)
    talk.do(SetVariable("a", 3), at=0)
    talk.do(DeleteVariable("b"), at=0)
    state = talk.state

    assert variables_view(talk.state, NOON_MS) == {"a": {"value": 3, "expires_at": None}}
    assert talk.do(DeleteVariable("nothing"), at=5).state is state


def test_variable_set_before_its_session_waits_a_day() -> None:
    """And is there when the session opens."""
    talk = Talk()
    decision = talk.do(SetVariable("a", 1), at=0)
    talk.say("user", "hi", at=60)

    assert decision.keep_until_ms == NOON_MS + DAY_MS
    assert decision.answer is None
    assert list(talk.state.variables) == ["a"]


def test_variables_at_their_limits() -> None:
    """The longest name, the largest value, the longest TTL."""
    talk = Talk()
    talk.do(SetVariable("n" * 128, "v" * 8_190, ttl_ms=366 * DAY_MS), at=0)
    talk.do(SetVariable("n", 2**53, ttl_ms=1), at=0)

    assert len(talk.state.variables) == 2


@pytest.mark.parametrize(
    ("command", "field", "message"),
    (
        (SetVariable("", 1), "name", NAME),
        (SetVariable("n" * 129, 1), "name", NAME),
        (SetVariable("a\x1fb", 1), "name", NAME),
        (SetVariable("n", "v" * 8_191), "value", "it takes 8193 bytes as JSON; at most 8192 are allowed"),
        (SetVariable("n", 2**53 + 1), "value", "it holds a whole number beyond 2^53"),
        (SetVariable("n", nested(DEEPEST + 1)), "value", "it is nested deeper than 8 levels"),
        (SetVariable("n", [nested(10_000)]), "value", "it is nested deeper than 8 levels"),
        (SetVariable("n", {"a": ["\ud800"]}), "value", "it holds half of a surrogate pair, which is no character"),
        (SetVariable("n", {"a\x00": 1}), "value", "it holds the character NUL"),
        (SetVariable("n", [{str(key): 1 for key in range(65)}]), "value", "it holds an object of more than 64 keys"),
        (SetVariable("n", [0] * 2_000), "value", "it holds more than 2000 values"),
        (SetVariable("n", [math.nan]), "value", "it holds a number that JSON does not have, such as NaN"),
        (SetVariable("n", -math.inf), "value", "it holds a number that JSON does not have, such as NaN"),
        (SetVariable("n", 1, ttl_ms=0), "ttl_s", TTL),
        (SetVariable("n", 1, ttl_ms=366 * DAY_MS + 1), "ttl_s", TTL),
    ),
)
def test_variable_beyond_its_limits_is_refused(command: SetVariable, field: str, message: str) -> None:
    talk = Talk()

    with pytest.raises(InvalidVariable) as refused:
        talk.do(command, at=0)
    assert refused.value.field == field
    assert refused.value.message == message
    assert refused.value.hint == HINTS[message]


@pytest.mark.parametrize("value", (None, True, 2**53, -(2**53), 1.5, "\x01 é", nested(DEEPEST), {"a": {"b": []}}))
def test_any_json_within_the_limits_is_kept(value: object) -> None:
    """As it was sent, to the last level that is allowed."""
    talk = Talk()
    talk.do(SetVariable("n", value), at=0)

    assert talk.state.variables["n"].value == value


def test_refresh_clears_everything() -> None:
    """K22: also variables with a TTL and what was waited for."""
    for is_open in (True, False):
        talk = talk_with_dialog()
        talk.do(SetVariable("vip", 1, ttl_ms=DAY_MS), at=1)
        talk.say("system", type="survey.sent", at=1)
        if not is_open:
            talk.close(at=2)
        talk.say("user", "again", refresh=True, at=3)

        assert talk.state.variables == {}
        assert talk.state.dialog is None
        assert talk.say("user", type="survey.answered", at=4).closed == ()
        assert talk.open.survey_answered_at_ms is None


def test_refresh_keeps_what_the_refreshing_entry_tells() -> None:
    talk = talk_with_dialog()
    talk.say("user", "again", refresh=True, tags=["fresh"], context={"topic": "hats"}, at=3)

    assert context_view(talk.state) == EMPTY | {"context": {"topic": "hats"}, "tags": ["fresh"]}


def test_live_state_is_limited() -> None:
    """An entry that would cross 64 KB is refused and changes nothing; the next one is accepted."""
    talk = Talk()
    talk.say("user", "a", at=0)
    for number in range(7):
        talk.do(SetVariable(f"v{number}", "x" * 8_190), at=0)
    state = talk.state

    with pytest.raises(StateTooLarge) as refused:
        talk.do(SetVariable("v8", "x" * 8_190), at=0)
    with pytest.raises(StateTooLarge):
        talk.say("user", "b", context={"x": "y" * 10_000}, at=0)
    with pytest.raises(StateTooLarge):
        talk.say("user", "b", sentiment={f"tone{number:0200}": 0.5 for number in range(64)}, at=0)
    with pytest.raises(StateTooLarge):
        talk.say("user", "b", session_metadata={"x": "y" * 8_150}, at=0)
    assert refused.value.limit == 65_536 < refused.value.size < 70_000
    assert refused.value.message == (
        f"the live state of the conversation or user would take {refused.value.size} bytes; at most 65536 are allowed"
    )
    assert refused.value.hint.startswith("shorten the context, the tags or the variables, or delete variables")
    assert talk.state is state
    assert talk.say("user", "b", at=1).sequence == 2


def test_limit_is_to_the_byte() -> None:
    """65,536 bytes are allowed, one more is not."""
    talk = Talk()
    talk.say("user", "a", context={"x": "y" * 60_000}, at=0)
    with pytest.raises(StateTooLarge) as refused:
        talk.say("user", "b", context={"x": "y" * 65_535}, at=0)
    exactly = 65_535 - (refused.value.size - 65_536)

    talk.say("user", "b", context={"x": "y" * exactly}, at=0)
    with pytest.raises(StateTooLarge):
        talk.say("user", "b", context={"x": "y" * (exactly + 1)}, at=0)


def test_utterances_discard_as_the_entry_types_do() -> None:
    """A user's whole text, in any case: all is cleared and the session goes on, or it closes."""
    talk = Talk(discard_utterances=["forget it"], discard_all_utterances=["forget all"])
    talk.say("user", "hi", tags=["vip"], context={"topic": "shoes"}, at=0)
    talk.say("user", " Forget ALL ", at=1)
    dialog = talk.state.dialog
    talk.say("user", "Forget it", at=2)

    assert dialog is None or (dialog.tags, dialog.context) == ((), None)
    assert talk.closings == [("discard", 2)]


def test_tags_that_version_0_1_0_wrote_count_as_one_each() -> None:
    """The bound is on tags, however long they are: exactly as many as it allows stay."""
    single = ("a tag of 0.1.0",) * 63
    joined = tuple(f"t{number}" for number in range(MOST_HISTORIC_TAGS - 63))

    assert with_historic(single, joined) == (*single, joined)
    assert with_historic(single, (*joined, "more")) == (*single[1:], (*joined, "more"))


def test_a_variable_with_a_ttl_alone_is_kept_until_it_expires() -> None:
    """Before any session, for longer than a day, and for less."""
    for ttl_ms in (60_000, 2 * DAY_MS):
        assert Talk().do(SetVariable("a", 1, ttl_ms=ttl_ms), at=0).keep_until_ms == NOON_MS + ttl_ms
