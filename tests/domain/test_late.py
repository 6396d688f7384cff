"""Entries after the end (ruling 11): late for the last session, or without any; and the epilogue."""

from typing import Any

import pytest

from app.domain.errors import InvalidEntry, StateTooLarge
from app.domain.instants import DAY_MS, MINUTE_MS
from app.domain.records import Message, Session, SetVariable
from app.domain.session_view import message_view
from tests.domain.talk import NOON_MS, Talk, minute

MS = 1 / 60_000
DAY = 24 * 60


def closed_talk(**policy: Any) -> Talk:  # noqa: ANN401  a policy's fields
    """A session of a question and an answer that the bot ended at minute 2."""
    talk = Talk(**policy)
    talk.say("user", "a", session_metadata={"phone": "+55"}, at=0)
    talk.say("bot", "b", at=1)
    talk.say("system", type="session.end", at=2)
    return talk


def last(talk: Talk) -> Session:
    assert talk.state.last is not None
    return talk.state.last


def test_late_entry_is_kept_with_the_closed_session() -> None:
    """Marked, numbered after all others, emitted; it changes no counter, deadline or bill, and opens nothing."""
    talk = closed_talk()
    before = last(talk)
    answer = talk.say("user", type="search", text="shoes", at=3)
    decision = talk.decisions[-1]
    (owner, message), (event,) = decision.messages[0], decision.events

    assert (answer.session, answer.session_id, answer.sequence, answer.closes_at_ms) == ("late", before.id, 4, None)
    assert (owner, message.late, message.sequence, message.text) == (before.id, True, 4, "shoes")
    assert (event.type, event.rule, event.session, event.data) == (
        "session.updated",
        "late",
        last(talk),
        {"message": message_view(message)},
    )
    assert {name for name in before.__struct_fields__ if getattr(before, name) != getattr(last(talk), name)} == {"late_entries"}
    assert (decision.wake_at_ms, talk.state.session, decision.unassigned) == (None, None, ())
    assert talk.say("system", type="activity", at=4).sequence == 5


def test_late_entries_have_24_hours() -> None:
    """From the close; then they belong to no session."""
    talk = closed_talk()
    in_time = talk.say("bot", type="escalated", at=2 + DAY - MS)
    kept_until = talk.decisions[-1].keep_until_ms
    too_late = talk.say("bot", type="escalated", at=2 + DAY)

    assert (in_time.session, too_late.session, too_late.session_id) == ("late", "none", None)
    assert minute(kept_until) == 2 + DAY
    assert [entry.reason for entry in talk.decisions[-1].unassigned] == ["too_late"]
    talk.say("user", "hi", at=3 + DAY)
    assert talk.state.last is None
    assert talk.open.previous_session_id == in_time.session_id


@pytest.mark.parametrize(
    ("policy", "fields", "reason"),
    (
        ({}, {"type": "search"}, "no_session"),
        ({}, {"type": "resolved"}, "no_session"),
        ({"starts_with": ["article.opened"]}, {"type": "message"}, "cannot_start"),
        ({"bot_starts": False}, {"role": "bot", "type": "connect"}, "cannot_start"),
        ({"bot_starts": False}, {"role": "bot", "type": "search"}, "no_session"),
    ),
)
def test_entry_without_a_session_is_kept_with_none(policy: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    """S04: with the reason, and everything that its session would say of it."""
    talk = Talk(**policy)
    fields = {"role": "user", "channel": "sms", "conversation_id": "c"} | fields
    answer = talk.say(fields.pop("role"), "x", at=0, **fields)
    decision = talk.decisions[-1]
    (entry,) = decision.unassigned

    assert (answer.session, answer.session_id, answer.sequence) == ("none", None, 0)
    assert (entry.reason, entry.message.message_id, entry.message.text) == (reason, "m1", "x")
    assert entry.message.rest == {"channel": "sms", "conversation_id": "c"}
    assert (decision.messages, decision.events, decision.answer) == ((), (), answer)


def test_late_outcome_is_recorded() -> None:
    """`resolved` and `escalated` set the outcome, and whether the bot contained it."""
    talk = closed_talk()
    assert (last(talk).outcome, last(talk).contained) == ("completed", True)
    talk.say("bot", type="resolved", at=3)
    assert (last(talk).outcome, last(talk).contained, last(talk).resolved_at_ms) == ("resolved", True, NOON_MS + 3 * 60_000)
    talk.say("agent", type="escalated", at=4)
    assert (last(talk).outcome, last(talk).contained, last(talk).escalated_at_ms) == ("escalated", False, NOON_MS + 4 * 60_000)


def test_dropped_session_that_is_resolved_late_is_contained() -> None:
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.wake(at=15)
    assert (last(talk).outcome, last(talk).contained) == ("dropped", False)
    talk.say("system", type="resolved", at=16)

    assert (last(talk).outcome, last(talk).contained) == ("resolved", True)


def test_late_survey_is_on_the_session() -> None:
    """S05: sent and answered after the close; the second answer and one without a survey are no answers."""
    talk = closed_talk(on_survey_answered="end")
    talk.say("user", type="survey.answered", at=3)
    assert last(talk).survey_answered_at_ms is None
    talk.say("bot", type="survey.sent", at=4)
    talk.say("user", type="survey.answered", at=5)
    talk.say("user", type="survey.answered", at=6)

    assert (last(talk).survey_sent_at_ms, last(talk).survey_answered_at_ms) == (NOON_MS + 4 * 60_000, NOON_MS + 5 * 60_000)
    assert last(talk).late_entries == 4
    assert talk.closings == [("ended", 2)]


def test_late_metadata_is_merged() -> None:
    """The newest value of a key; too much of it is refused, and changes nothing."""
    talk = closed_talk()
    talk.say("bot", type="search", session_metadata={"phone": "+56", "vip": True}, at=3)

    assert last(talk).session_metadata == {"phone": "+56", "vip": True}
    with pytest.raises(InvalidEntry) as refused:
        talk.say("bot", type="search", session_metadata={"long": "x" * 8_160}, at=4)
    assert refused.value.field == "session_metadata"
    assert refused.value.message == "merged into the session's, it takes 8196 bytes as JSON; at most 8192 are allowed"
    assert last(talk).late_entries == 1


def test_session_metadata_is_merged() -> None:
    """In an open session, likewise; alone it may have 8 KB."""
    talk = Talk()
    talk.say("user", "a", session_metadata={"long": "x" * 8_181}, at=0)
    talk.say("user", "b", session_metadata={"long": 1}, at=1)
    talk.say("user", "c", session_metadata={"vip": None}, at=2)
    talk.say("user", "d", at=3)

    assert talk.open.session_metadata == {"long": 1, "vip": None}
    with pytest.raises(InvalidEntry):
        talk.say("user", "e", session_metadata={"long": "x" * 8_180}, at=4)
    assert talk.open.entries == 4


@pytest.mark.parametrize("reason", ("client", "platform"))
@pytest.mark.parametrize(
    ("role", "fields", "expected"),
    (
        ("user", {"type": "message"}, {"client": "late", "platform": "opened"}),
        ("bot", {"type": "message"}, {"client": "late", "platform": "late"}),
        ("agent", {"type": "message"}, {"client": "late", "platform": "late"}),
        ("system", {"type": "message"}, {"client": "late", "platform": "late"}),
        ("bot", {"type": "connect"}, {"client": "late", "platform": "opened"}),
        ("agent", {"type": "agent.joined"}, {"client": "late", "platform": "opened"}),
        ("bot", {"type": "session.start"}, {"client": "opened", "platform": "opened"}),
        ("bot", {"tags": ["new session"]}, {"client": "opened", "platform": "opened"}),
        ("bot", {"refresh": True}, {"client": "opened", "platform": "opened"}),
    ),
)
def test_entry_of_a_session_that_has_ended(reason: str, role: str, fields: dict[str, Any], expected: dict[str, str]) -> None:
    """S09, S14: under method `client` its id says so, under `platform` only the user or a signal begins another."""
    talk = Talk(method=reason)
    talk.say("user", "a", client_session_id="s1", at=0)
    talk.say("bot", type="session.end", client_session_id="s1", at=1)

    assert talk.say(role, "b", client_session_id="s1", at=2, **fields).session == expected[reason]


@pytest.mark.parametrize("method", ("client", "platform"))
def test_agent_who_is_expected_opens_a_session_that_had_ended(method: str) -> None:
    """Under `split` the hand-off closed it, and the next is the agent's."""
    talk = Talk(method=method, on_handoff="split")
    talk.say("user", "a", client_session_id="s1", at=0)
    talk.say("bot", type="handoff", client_session_id="s1", at=1)

    assert talk.say("bot", "one moment", client_session_id="s1", at=2).session == "opened"
    assert talk.open.trade == "agent"


@pytest.mark.parametrize(
    ("reason", "fields", "at", "expected"),
    (
        ("inactivity", {}, 59.999, "late"),
        ("inactivity", {}, 60, "opened"),
        ("resolved", {}, 1, "late"),
        ("ended", {}, 1, "late"),
        ("chat_closed", {}, 1, "opened"),
        ("resolved", {"intent": "thanks"}, 1, "late"),
        ("resolved", {"intent": "pay"}, 1, "opened"),
        ("resolved", {"refresh": True}, 1, "opened"),
        ("resolved", {"type": "connect"}, 1, "opened"),
        ("resolved", {"tags": ["new session"]}, 1, "opened"),
        ("resolved", {"role": "bot"}, 1, "opened"),
    ),
)
def test_epilogue(reason: str, fields: dict[str, Any], at: float, expected: str) -> None:
    """A user's message without an intent, or with one of the policy's, soon after a close that finished something."""
    talk = Talk(epilogue_seconds=60, epilogue_intents=["thanks"])
    talk.say("user", "a", at=0)
    closing = {"resolved": "resolved", "ended": "session.end", "chat_closed": "chat.closed"}
    if reason in closing:
        talk.say("bot", type=closing[reason], at=14)
    else:
        talk.wake(at=15)
    closed_at = minute(last(talk).closed_at_ms)
    fields = {"role": "user", **fields}

    assert talk.say(fields.pop("role"), "thanks!", at=closed_at + at / 60, **fields).session == expected


def test_no_epilogue_by_default() -> None:
    talk = closed_talk()

    assert talk.say("user", "thanks!", at=2).session == "opened"


def test_effects_between_sessions_stay() -> None:
    """A late hand-off under `split` makes the next session the agent's."""
    talk = closed_talk(on_handoff="split")
    assert talk.say("bot", type="handoff", at=3).session == "late"
    talk.say("user", "b", at=4)

    assert talk.open.trade == "agent"


def test_late_message_is_marked_in_its_json() -> None:
    talk = closed_talk()
    talk.say("user", type="search", at=3)
    late: list[Message] = [message for _, message in talk.messages if message.late]

    assert [message_view(message)["late"] for _, message in talk.messages] == [False, False, False, True]
    assert late[0].answer.session == "late"


def test_late_event_is_of_the_instant_of_its_entry() -> None:
    """The message keeps nothing that its session says already."""
    talk = Talk(on_resolved="end")
    talk.say("user", "pay", at=0)
    talk.say("bot", type="resolved", at=1)
    talk.say("bot", type="survey.sent", at=3)

    assert (talk.events[-1].type, talk.events[-1].at_ms) == ("session.updated", NOON_MS + 3 * MINUTE_MS)
    assert talk.messages[-1][1].rest is None


def test_late_metadata_counts_for_the_size_of_the_state() -> None:
    """A late entry may be what makes the state too large."""
    talk = Talk(on_resolved="end")
    talk.say("user", "pay", at=0)
    talk.say("bot", type="resolved", at=1)
    for number in range(8):
        talk.do(SetVariable(f"v{number}", "x" * 8_000, DAY_MS), at=2)

    with pytest.raises(StateTooLarge):
        talk.say("bot", type="survey.sent", at=3, session_metadata={"a": "y" * 4_000})
