"""Counters of a session: entries, instants, who takes part, the values reported last, billing; and the transcript."""

from typing import Any

import pytest

from app.domain.errors import InvalidEntry
from app.domain.json_value import DEEPEST
from app.domain.session_view import message_view
from tests.domain.talk import NOON_MS, Talk, minute, nested


def test_counters_and_instants_by_role() -> None:
    """Each role has its own; `activity` is an entry of no role; events are no interactions."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.say("bot", "b", at=1)
    talk.say("bot", type="activity", at=2)
    talk.say("system", "c", at=3)
    talk.say("agent", "d", at=4)
    talk.say("user", type="search", at=5)
    talk.say("bot", "e", at=6)
    talk.say("system", type="survey.sent", at=7)
    session = talk.open

    assert session.entries == 8
    assert (session.user_entries, session.bot_entries, session.agent_entries, session.system_entries) == (2, 2, 1, 2)
    assert session.interactions == 4
    assert minute(session.last_entry_at_ms) == 7
    assert [minute(at_ms) for at_ms in (session.first_user_at_ms, session.last_user_at_ms)] == [0, 5]
    assert [minute(at_ms) for at_ms in (session.first_bot_at_ms, session.last_bot_at_ms)] == [1, 6]
    assert [minute(at_ms) for at_ms in (session.first_agent_at_ms, session.last_agent_at_ms)] == [4, 4]
    assert [minute(at_ms) for at_ms in (session.first_system_at_ms, session.last_system_at_ms)] == [3, 7]


@pytest.mark.parametrize(
    ("roles", "expected"),
    (
        (("user", "user", "bot", "bot"), 2 * 60_000),
        (("user", "agent"), 60_000),
        (("bot", "user", "bot"), 60_000),
        (("user", "system", "user"), None),
        (("bot", "agent"), None),
    ),
)
def test_first_response(roles: tuple[str, ...], expected: int | None) -> None:
    """From the user's first message to the first by bot or agent after it."""
    talk = Talk()
    for at, role in enumerate(roles):
        talk.say(role, "x", at=at)

    assert talk.open.first_response_ms == expected


def test_only_messages_are_asked_and_answered() -> None:
    """Events have no part in the first response."""
    talk = Talk()
    talk.say("user", type="article.opened", at=0)
    talk.say("user", "a", at=1)
    talk.say("bot", type="connect", at=2)
    talk.say("bot", "b", at=4)

    assert talk.open.first_response_ms == 3 * 60_000


@pytest.mark.parametrize(
    ("role", "kind", "interactive"),
    (
        ("user", "message", True),
        ("user", "session.start", True),
        ("user", "article.opened", True),
        ("user", "connect", False),
        ("bot", "connect", False),
        ("bot", "message", False),
        ("agent", "message", False),
        ("system", "message", False),
        ("bot", "authorization", True),
        ("system", "authorization", True),
    ),
)
def test_who_makes_a_session_interactive(role: str, kind: str, interactive: bool) -> None:  # noqa: FBT001  a column of the table
    """K13 to K17."""
    talk = Talk()
    talk.say(role, type=kind)

    assert talk.open.interactive is interactive
    assert talk.open.billing_sessions == int(interactive)


@pytest.mark.parametrize("kind", ("activity", "connect", "session.end", "conversation.ended", "chat.closed"))
def test_typing_arriving_and_leaving_are_no_interaction(kind: str) -> None:
    """The user's, and yet the session stays non-interactive."""
    talk = Talk()
    talk.say("bot", "hello?", at=0)
    talk.say("user", type=kind, at=1)

    session = talk.state.session or talk.closed[0]
    assert (session.interactive, session.billing_sessions) == (False, 0)


def test_interactive_stays() -> None:
    """K16: from the first entry by the user on, the same session."""
    talk = Talk()
    talk.say("bot", "hello?", at=0)
    talk.say("user", "yes", at=1)
    talk.say("bot", "good", at=2)

    assert talk.open.interactive
    assert talk.open.entries == 3


def test_developer_flag_stays_and_is_never_billed() -> None:
    """K19: also if the developer comes late."""
    talk = Talk()
    talk.say("user", "a", at=0)
    assert (talk.open.developer, talk.open.billing_sessions) == (False, 1)
    talk.say("user", "b", developer=True, at=1)
    talk.say("user", "c", at=14)
    talk.say("user", "d", at=16)

    assert (talk.open.developer, talk.open.billing_sessions) == (True, 0)


@pytest.mark.parametrize(
    ("minutes", "expected"),
    (((0,), 1), ((0, 14.99), 1), ((0, 15), 2), ((0, 14, 29), 2), ((0, 14, 30), 2), ((0, 15, 30), 3), ((0, 20, 45, 59), 3)),
)
def test_billing_blocks(minutes: tuple[float, ...], expected: int) -> None:
    """K02: blocks of 15 minutes from the opening, each counted once, and only those in which the user did something."""
    talk = Talk(inactivity_minutes=60)
    for at in minutes:
        talk.say("user", "x", at=at)
        talk.say("bot", "y", at=at)

    assert talk.open.billing_sessions == expected


def test_billing_blocks_count_from_the_opening_by_anyone() -> None:
    """And are as long as the policy says."""
    talk = Talk(inactivity_minutes=60, billing_block_minutes=10)
    talk.say("bot", "hello?", at=0)
    talk.say("user", "x", at=9)
    talk.say("user", "y", at=10)
    talk.say("user", "z", at=19)

    assert talk.open.billing_sessions == 2
    assert minute(talk.open.billed_until_ms) == 20


def test_last_seen() -> None:
    """Language, intent and tags of the last entry that had them; tags that are commands are none."""
    talk = Talk()
    talk.say("user", "a", language="pt-BR", intent="pay", tags=["vip"], at=0)
    talk.say("bot", "b", at=1)
    talk.say("bot", "c", tags=["discard all"], at=2)
    assert (talk.open.language, talk.open.intent, talk.open.tags) == ("pt-BR", "pay", ("vip",))
    talk.say("user", "d", language="en", intent="cancel", tags=["discard all", "x", "y"], at=3)

    assert (talk.open.language, talk.open.intent, talk.open.tags) == ("en", "cancel", ("x", "y"))


def test_requires_bot() -> None:
    """R03: counted from the bot's first entry on; its typing is none."""
    talk = Talk(requires_bot=True)
    talk.say("user", "a", at=0)
    talk.say("agent", "b", at=1)
    talk.say("bot", type="activity", at=1)
    before = talk.open.counted
    talk.say("bot", type="connect", at=2)

    assert (before, talk.open.counted) == (False, True)
    assert Talk().say("user", "a").session == "opened"


def test_not_requiring_a_bot_counts_all() -> None:
    talk = Talk()
    talk.say("user", "a")

    assert talk.open.counted


def test_entry_is_kept_whole() -> None:
    """Every field that was sent can be read back, in its place, with the answer that a repeat gets."""
    talk = Talk()
    extra: dict[str, Any] = {
        "intent_valid": False,
        "sentiment": {"angry": 0.5},
        "context": {"topic": "shoes"},
        "developer": True,
        "refresh": True,
        "window_id": "w",
        "source": "click",
        "in_reply_to": "evt",
        "client_session_id": "s",
        "metadata": {"a": [1]},
        "session_metadata": {"phone": "+55"},
    }
    answer = talk.say("user", "hi", intent="pay", language="pt", tags=["vip"], sent_at="2026-11-21T11:59:59.5Z", at=2, **extra)
    session_id, message = talk.messages[0]

    assert session_id == answer.session_id
    assert message.answer == answer
    assert message_view(message) == {
        "message_id": "m1",
        "sequence": 1,
        "late": False,
        "received_at": "2026-11-21T12:02:00.000Z",
        "sent_at": "2026-11-21T11:59:59.500Z",
        "role": "user",
        "type": "message",
        "user_id": "ann",
        "text": "hi",
        "intent": "pay",
        "language": "pt",
        "tags": ["vip"],
        **extra,
    }


def test_usual_entry_keeps_nothing_beside() -> None:
    """And another channel than the session's is kept."""
    talk = Talk()
    talk.say("user", "hi", conversation_id="c", at=0)
    talk.say("user", "hi", conversation_id="c", channel="sms", source="x", at=1)
    talk.say("user", "hi", conversation_id="c", channel="sms", at=1)

    assert [message.rest for _, message in talk.messages] == [None, {"channel": "sms", "source": "x"}, {"channel": "sms"}]
    assert talk.open.channel == "web"


def test_received_time_rules_live_sessions() -> None:
    """Ruling 7: `sent_at` is kept and moves nothing."""
    talk = Talk()
    answer = talk.say("user", "hi", sent_at="2020-01-01T00:00:00Z", at=1)

    assert answer.received_at_ms == NOON_MS + 60_000
    assert minute(answer.closes_at_ms) == 16


@pytest.mark.parametrize("field", ("context", "metadata"))
def test_number_that_cannot_be_kept_is_refused(field: str) -> None:
    """Beyond 2^53 other readers of JSON round; the refusal changes nothing and names the field."""
    talk = Talk()
    talk.say("user", "hi", **{field: {"n": 2**53}}, at=0)
    state = talk.state

    with pytest.raises(InvalidEntry) as refused:
        talk.say("user", "hi", **{field: {"n": [2**53 + 1]}}, at=1)
    assert refused.value.field == field
    assert refused.value.message == "it holds a whole number beyond 2^53"
    assert refused.value.hint == "send such a number as a string"
    assert talk.state is state


def test_the_values_of_an_entry_are_counted_together() -> None:
    """Each of the two fields is within the limit by itself."""
    talk = Talk()
    talk.say("user", "hi", context={"n": [0] * 990}, metadata={"n": [0] * 990}, at=0)

    with pytest.raises(InvalidEntry) as refused:
        talk.say("user", "hi", context={"n": [0] * 1_000}, metadata={"n": [0] * 1_000}, at=1)
    assert refused.value.field == "metadata"
    assert refused.value.message == "it holds more than 2000 values"


@pytest.mark.parametrize("field", ("context", "metadata"))
def test_depth_that_others_could_not_read_is_refused(field: str) -> None:
    """One reader of JSON accepts values that another could not read again: such an entry is refused before it counts."""
    talk = Talk()
    talk.say("user", "hi", **{field: {"n": nested(DEEPEST - 1)}}, at=0)
    state = talk.state

    with pytest.raises(InvalidEntry) as refused:
        talk.say("user", "hi", **{field: {"n": nested(DEEPEST)}}, at=1)
    assert refused.value.field == field
    assert refused.value.message == "it is nested deeper than 8 levels"
    assert refused.value.hint == "flatten it, or send it as a string"
    assert talk.state is state


def test_the_user_s_intents_are_kept_in_their_order() -> None:
    """No repeats in a row; none by others, and none of typing. `user_intent` is that of the last entry, if it had one."""
    talk = Talk()
    talk.say("user", "a", intent="pay", at=0)
    talk.say("bot", "b", intent="ask", at=1)
    talk.say("user", type="activity", intent="type", at=2)
    talk.say("user", "c", intent="pay", at=3)

    assert (talk.open.intents, talk.open.user_intent, talk.open.intent) == (("pay",), "pay", "pay")

    for intent in ("return", "return", "pay", "pay"):
        talk.say("user", "d", intent=intent, at=4)

    assert (talk.open.intents, talk.open.user_intent) == (("pay", "return", "pay"), "pay")

    talk.say("user", "e", at=5)

    assert (talk.open.intents, talk.open.user_intent, talk.open.intent) == (("pay", "return", "pay"), None, "pay")


def test_intents_are_bounded() -> None:
    """The first 32 are kept."""
    talk = Talk()
    for number in range(34):
        talk.say("user", "a", intent=f"i{number}", at=0)

    assert talk.open.intents == tuple(f"i{number}" for number in range(32))


def test_a_system_entry_is_no_word_of_an_agent() -> None:
    """Whether a message by an agent is a hand-off or not."""
    talk = Talk(agent_message_joins=False)
    talk.say("user", "a", at=0)
    talk.say("system", "b", at=1)
    before = talk.open.trade
    talk.say("agent", "c", at=2)

    assert (before, talk.open.trade) == ("bot", "agent")


def test_a_refusal_of_merged_metadata_says_what_to_do() -> None:
    """The fault of the merged value, with its remedy."""
    talk = Talk()
    talk.say("user", "a", at=0, session_metadata={f"a{number}": 1 for number in range(40)})
    with pytest.raises(InvalidEntry) as refused:
        talk.say("user", "b", at=1, session_metadata={f"b{number}": 1 for number in range(40)})

    assert refused.value.field == "session_metadata"
    assert refused.value.hint == "send fewer, or a list"
    assert len(talk.open.session_metadata or ()) == 40


def test_every_value_that_cannot_be_stored_is_named() -> None:
    """An entry with several faults answers all of them."""
    deep = nested(DEEPEST + 1)
    with pytest.raises(InvalidEntry) as refused:
        Talk().say("user", "a", metadata={"a": deep}, session_metadata={"b": deep})

    assert [fault.where.partition(".")[0] for fault in refused.value.faults] == ["metadata", "session_metadata"]
