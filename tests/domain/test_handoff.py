"""Hand-off to a human under each policy, surveys, outcomes, and what is remembered between sessions."""

from typing import Any

import pytest

from app.domain.instants import DAY_MS
from app.domain.records import Answer, Close
from tests.domain.talk import NOON_MS, Talk, minute

DAY = 24 * 60
MS = 1 / 60_000


def test_continue() -> None:
    """The same session; its trade is the agent's once one takes part."""
    talk = Talk(on_handoff="continue")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)
    called = talk.open.trade
    talk.say("agent", type="agent.joined", at=2)
    joined = talk.open.trade
    answer = talk.say("system", type="agent.left", at=3)

    assert (called, joined) == ("bot", "agent")
    assert answer.session == "continued"
    assert talk.closed == []
    assert minute(talk.open.handed_off_at_ms) == 1
    assert minute(talk.open.deadline_at_ms) == 18


def test_end() -> None:
    """A07; the hand-off is the session's last entry, and what follows is the bot's."""
    talk = Talk(on_handoff="end")
    talk.say("user", "a", at=0)
    answer = talk.say("bot", type="handoff", at=1)
    talk.say("user", "b", at=2)

    assert [ended.reason for ended in answer.closed] == ["handoff"]
    assert talk.closings == [("handoff", 1)]
    closed = talk.closed[0]
    assert (closed.closing_rule, closed.closed_by, closed.outcome, closed.contained) == ("A07", "m2", "handed_off", False)
    assert (talk.open.trade, talk.open.handed_off_at_ms) == ("bot", None)


def test_end_by_an_agent_who_just_joins() -> None:
    """Without a `handoff` the agent's joining is one. An agent who is there already ends nothing by joining again."""
    talk = Talk(on_handoff="end")
    talk.say("user", "a", at=0)
    first = talk.say("agent", type="agent.joined", at=1)
    opened = talk.say("agent", type="agent.joined", at=2)
    again = talk.say("agent", type="agent.joined", at=3)

    assert [ended.reason for ended in first.closed] == ["handoff"]
    assert (talk.closed[0].closing_rule, talk.closed[0].trade, talk.closed[0].closed_by) == ("A07", "agent", "m2")
    assert (opened.session, again.session) == ("opened", "continued")
    assert (talk.open.trade, minute(talk.open.handed_off_at_ms)) == ("agent", 2)


def test_split() -> None:
    """B05: the bot's session with the hand-off as its last entry, then one of trade `agent`."""
    talk = Talk(preset="botanalytics")
    talk.say("user", "a", at=0)
    answer = talk.say("bot", type="handoff", at=1)
    talk.say("user", "b", at=2)
    second = talk.open
    talk.say("agent", type="agent.joined", at=3)
    talk.say("bot", type="handoff", at=4)

    assert [ended.reason for ended in answer.closed] == ["handoff"]
    closed = talk.closed[0]
    assert (closed.closing_rule, closed.trade, closed.outcome, closed.closed_by) == ("B05", "bot", "handed_off", "m2")
    assert (second.trade, minute(second.handed_off_at_ms)) == ("agent", 2)
    assert talk.open.id == second.id
    assert len(talk.closed) == 1


def test_split_by_an_agent_who_just_joins() -> None:
    """The joining belongs to the agent's session."""
    talk = Talk(on_handoff="split")
    talk.say("user", "a", at=0)
    answer = talk.say("agent", type="agent.joined", at=1)

    assert (answer.session, answer.sequence) == ("opened", 1)
    assert talk.emitted[1:] == [("session.closed", "B05"), ("session.opened", "B05")]
    closed = talk.closed[0]
    assert (closed.outcome, closed.contained, minute(closed.handed_off_at_ms)) == ("handed_off", False, 1)
    assert talk.open.trade == "agent"


def test_split_is_for_one_session() -> None:
    """The next but one is the bot's again."""
    talk = Talk(on_handoff="split")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)
    talk.say("user", "b", at=2)
    talk.close(at=3)
    talk.say("user", "c", at=4)

    assert [session.trade for session in talk.closed] == ["bot", "agent"]
    assert talk.open.trade == "bot"


@pytest.mark.parametrize(("after", "trade"), ((DAY - MS, "agent"), (DAY, "bot")))
def test_hand_off_waits_a_day(after: float, trade: str) -> None:
    """Then it no longer counts."""
    talk = Talk(on_handoff="split")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)
    kept = talk.decisions[-1].keep_until_ms
    talk.say("user", "b", at=1 + after)

    assert minute(kept) == 1 + DAY
    assert talk.open.trade == trade


def test_hand_off_between_sessions() -> None:
    """Under `split` the next session is the agent's, unless the agent left; else nothing is remembered."""
    trades = []
    for policy, entries in (
        ("split", ("handoff",)),
        ("split", ("handoff", "agent.left")),
        ("split", ("agent.left",)),
        ("end", ("handoff",)),
        ("continue", ("handoff",)),
        ("pause", ("handoff",)),
    ):
        talk = Talk(on_handoff=policy)
        for kind in entries:
            assert talk.say("bot", type=kind, at=0).session == "none"
        talk.say("user", "a", at=1)
        trades.append(talk.open.trade)

    assert trades == ["agent", "bot", "bot", "bot", "bot", "bot"]


def test_hand_off_between_sessions_goes_by_the_entrys_channel() -> None:
    talk = Talk(channels={"sms": {"on_handoff": "split"}})
    talk.say("bot", type="handoff", channel="sms", at=0)
    talk.say("user", "a", channel="sms", at=1)

    assert talk.open.trade == "agent"


@pytest.mark.parametrize("kind", ("handoff", "agent.joined"))
def test_pause(kind: str) -> None:
    """No silence until the agent leaves; then both clocks start anew. The longest duration holds all the same."""
    talk = Talk(
        on_handoff="pause", inactivity_clock="user", max_duration_hours=24, reminder={"minutes": 1, "texts": {"default": "x"}}
    )
    talk.say("user", "a", at=0)
    paused = talk.say("bot", type=kind, at=1)
    wake_at_ms = talk.decisions[-1].wake_at_ms
    later = talk.say("agent", "b", at=100)
    left = talk.say("agent", type="agent.left", at=200)
    reminder_at_ms = talk.decisions[-1].wake_at_ms

    assert minute(paused.closes_at_ms) == minute(wake_at_ms) == minute(later.closes_at_ms) == DAY
    assert minute(left.closes_at_ms) == 215
    assert minute(reminder_at_ms) == 214
    assert talk.open.deadline_by == "m4"
    assert talk.open.deadline_reason == "inactivity"
    assert talk.open.paused is False


def test_pause_sets_the_deadline_by_the_entry_that_pauses() -> None:
    for kind in ("handoff", "agent.joined"):
        talk = Talk(on_handoff="pause", inactivity_clock="user")
        talk.say("user", "a", at=0)
        talk.say("bot", type=kind, at=1)

        assert (talk.open.deadline_by, talk.open.deadline_reason, talk.open.paused) == ("m2", "max_duration", True)


def test_pause_again_after_the_agent_left() -> None:
    """By a second agent, too, though the trade is the agent's already."""
    talk = Talk(on_handoff="pause")
    talk.say("user", "a", at=0)
    talk.say("agent", type="agent.joined", at=1)
    talk.say("agent", type="agent.left", at=2)
    talk.say("agent", type="agent.joined", at=3)

    assert talk.open.paused
    assert minute(talk.open.handed_off_at_ms) == 1


def test_agent_who_leaves_what_was_not_paused_is_an_entry_like_any() -> None:
    """Clock `user`: the deadline stays."""
    talk = Talk(on_handoff="pause", inactivity_clock="user")
    talk.say("user", "a", at=0)
    answer = talk.say("system", type="agent.left", at=5)

    assert minute(answer.closes_at_ms) == 15


def test_policy_that_stops_pausing_resumes() -> None:
    """The silence counts again, though never to before the change."""
    talk = Talk(on_handoff="pause")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)
    talk.change_policy(on_handoff="continue", at=100)

    assert talk.closings == [("inactivity", 100)]


@pytest.mark.parametrize(
    ("on_handoff", "closings", "openings"),
    (
        ("continue", [], ["continued", "continued"]),
        ("split", [("handoff", 2)], ["opened", "continued"]),
        ("end", [("handoff", 2)], ["continued", "opened"]),
        ("pause", [], ["continued", "continued"]),
    ),
)
def test_message_of_an_agent_who_has_not_joined_is_a_hand_off(
    on_handoff: str, closings: list[tuple[str, int]], openings: list[str]
) -> None:
    """Ruling 8, S06: it acts as `agent.joined`, the next one does not; typing is no taking part, a signal no hand-off."""
    talk = Talk(on_handoff=on_handoff, on_resolved="continue")
    talk.say("user", "a", at=0)
    talk.say("agent", type="activity", at=1)
    talk.say("agent", type="resolved", at=1)
    before = talk.open
    found = [talk.say("agent", "b", at=2), talk.say("agent", "c", at=3)]

    assert (before.trade, before.handed_off_at_ms) == ("bot", None)
    assert (talk.open.trade, minute(talk.open.handed_off_at_ms)) == ("agent", 3 if on_handoff == "end" else 2)
    assert talk.closings == closings
    assert [answer.session for answer in found] == openings


@pytest.mark.parametrize("on_handoff", ("continue", "split", "end", "pause"))
def test_message_of_an_agent_can_be_no_hand_off(on_handoff: str) -> None:
    """Without `agent_message_joins` the session counts on, and is contained; the agent who joins later is a hand-off."""
    talk = Talk(on_handoff=on_handoff, agent_message_joins=False)
    talk.say("user", "a", at=0)
    talk.say("agent", "b", at=1)

    assert (talk.open.trade, talk.open.handed_off_at_ms, talk.closed) == ("agent", None, [])
    talk.say("agent", type="agent.joined", at=2)
    assert len(talk.closed) == (on_handoff in {"split", "end"})
    session = talk.state.session or talk.closed[0]
    assert minute(session.handed_off_at_ms) == 2


def test_after_the_agent_left_the_next_session_is_of_the_bot() -> None:
    """Ruling 8, S07: under `split` the leaving closes the agent's session."""
    talk = Talk(on_handoff="split")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)
    talk.say("user", "b", at=2)
    talk.say("agent", type="agent.joined", at=3)
    talk.say("agent", type="agent.joined", at=4)
    left = talk.say("agent", type="agent.left", at=5)
    opened = talk.say("user", "c", at=6)

    assert talk.closings == [("handoff", 1), ("handoff", 5)]
    assert [session.trade for session in [*talk.closed, talk.open]] == ["bot", "agent", "bot"]
    assert (left.session, opened.session, talk.open.agent_present) == ("continued", "opened", False)
    assert talk.closed[1].closed_by == "m6"


def test_agent_who_speaks_after_leaving_joins_again() -> None:
    """Under `pause` the leaving starts the clock, and the next message of an agent stops it."""
    talk = Talk(on_handoff="pause")
    talk.say("user", "a", at=0)
    paused = []
    for at, fields in enumerate(({"text": "hi"}, {"type": "agent.left"}, {"text": "one more thing"}), start=1):
        talk.say("agent", at=at, **fields)
        paused.append((talk.open.paused, talk.open.agent_present))

    assert paused == [(True, True), (False, False), (True, True)]


@pytest.mark.parametrize("on_survey_answered", ("end", "continue"))
def test_survey_answered_in_time(on_survey_answered: str) -> None:
    """A08: closes where the policy says so; it counts in either case, once."""
    talk = Talk(on_survey_answered=on_survey_answered, closing="on_return")
    talk.say("user", "a", at=0)
    talk.say("system", type="survey.sent", at=1)
    answer = talk.say("user", type="survey.answered", at=1 + DAY - MS)

    session = talk.state.session or talk.closed[0]
    assert [ended.reason for ended in answer.closed] == (["survey_answered"] if on_survey_answered == "end" else [])
    assert minute(session.survey_sent_at_ms) == 1
    assert minute(session.survey_answered_at_ms) == 1 + DAY - MS
    if on_survey_answered == "end":
        assert (session.closing_rule, session.closed_by, session.outcome) == ("A08", "m3", "completed")


def test_survey_answered_late_or_twice_or_unasked() -> None:
    """It is an entry like any."""
    late, twice, unasked = (Talk(on_survey_answered="end", closing="on_return") for _ in range(3))
    late.say("user", "a", at=0)
    late.say("system", type="survey.sent", at=1)
    late.say("user", type="survey.answered", at=1 + DAY)
    twice.say("user", "a", at=0)
    twice.say("system", type="survey.sent", at=1)
    twice.say("user", type="survey.answered", at=2)
    twice.say("user", "b", at=3)
    twice.say("user", type="survey.answered", at=4)
    unasked.say("user", "a", at=0)
    unasked.say("user", type="survey.answered", at=1)

    for talk in (late, twice, unasked):
        assert talk.open.survey_answered_at_ms is None
        assert talk.decisions[-1].answer is not None
        assert talk.decisions[-1].answer.session == "continued"
    assert len(twice.closed) == 1


def test_survey_sent_between_sessions() -> None:
    """The answer may come in the next; what is waited for is kept a day."""
    talk = Talk(on_survey_answered="end")
    kept = talk.say("system", type="survey.sent", at=0)
    keep_until_ms = talk.decisions[-1].keep_until_ms
    talk.say("user", "a", at=20)
    talk.say("user", type="survey.answered", at=21)

    assert kept.session == "none"
    assert keep_until_ms == NOON_MS + DAY_MS
    assert talk.closings == [("survey_answered", 21)]


def test_hand_off_and_survey_are_waited_for_side_by_side() -> None:
    """One being over does not end the other."""
    talk = Talk(on_handoff="split", on_survey_answered="end")
    talk.say("system", type="survey.sent", at=0)
    talk.say("bot", type="handoff", at=60)
    assert minute(talk.decisions[-1].keep_until_ms) == 60 + DAY
    talk.say("user", "a", at=70)
    assert talk.open.trade == "agent"
    talk.say("user", type="survey.answered", at=71)

    assert talk.closings == [("survey_answered", 71)]


def test_what_was_waited_for_in_vain_is_forgotten() -> None:
    """Once it is over, the state holds nothing of it."""
    talk = Talk(closing="on_return")
    talk.say("user", "a", at=0)
    talk.say("system", type="survey.sent", at=0)
    talk.say("user", "b", at=DAY - MS)
    before = talk.state.pending
    talk.say("bot", "c", at=DAY)

    assert before is not None
    assert talk.state.pending is None


@pytest.mark.parametrize(
    ("entries", "policy", "expected"),
    (
        ((), {}, (None, None)),
        (("resolved",), {}, ("resolved", True)),
        (("escalated", "session.end"), {}, ("escalated", False)),
        (("escalated",), {"on_escalated": "end"}, ("escalated", False)),
        (("escalated", "resolved"), {}, ("resolved", False)),
        (("resolved", "escalated", "session.end"), {"on_resolved": "continue"}, ("escalated", False)),
        (("handoff", "session.end"), {}, ("handed_off", False)),
        (("handoff", "resolved"), {}, ("resolved", False)),
        (("session.end",), {}, ("completed", True)),
        (("chat.closed",), {}, ("completed", True)),
        (("interrupted",), {}, ("abandoned", False)),
    ),
)
def test_outcome(entries: tuple[str, ...], policy: dict[str, Any], expected: tuple[str | None, bool | None]) -> None:
    """The one reported last, else the hand-off, else the reason of the close. Contained: ruling 5."""
    talk = Talk(**policy)
    talk.say("user", "a", at=0)
    for kind in entries:
        talk.say("bot", type=kind, at=1)

    session = talk.state.session or talk.closed[0]
    assert (session.outcome, session.contained) == expected


def test_outcome_by_time() -> None:
    """Ruling 13: silence after the bot's or the agent's message completes, after the user's it drops; abandoned is abandoned."""
    outcomes = []
    for roles, policy in (("ub", {}), ("u", {}), ("ubu", {}), ("us", {}), ("b", {}), ("ub", {"closing": "on_return"})):
        talk = Talk(**policy)
        for at, role in enumerate(roles):
            talk.say({"u": "user", "b": "bot", "a": "agent", "s": "system"}[role], "x", at=at)
        talk.wake(at=8 * DAY)
        outcomes.append((talk.closed[0].outcome, talk.closed[0].contained))

    assert outcomes == [
        ("completed", True),
        ("dropped", False),
        ("dropped", False),
        ("dropped", False),
        ("completed", True),
        ("abandoned", False),
    ]


@pytest.mark.parametrize(
    ("kind", "policy", "reason", "rule"),
    (
        ("session.end", {}, "ended", "B08"),
        ("conversation.ended", {}, "ended", "B10"),
        ("chat.closed", {}, "chat_closed", "A04"),
        ("interrupted", {}, "interrupted", "A09"),
        ("resolved", {}, "resolved", "R06"),
        ("escalated", {"on_escalated": "end"}, "escalated", "R06"),
    ),
)
def test_signal_that_closes(kind: str, policy: dict[str, Any], reason: str, rule: str) -> None:
    """With the entry in the session, by its row."""
    talk = Talk(**policy)
    talk.say("user", "a", at=0)
    talk.say("bot", type=kind, message_id="last", at=1)
    closed = talk.closed[0]

    assert (closed.reason, closed.closing_rule, closed.closed_by, closed.entries) == (reason, rule, "last", 2)
    assert talk.emitted[-1] == ("session.closed", rule)


@pytest.mark.parametrize(("kind", "field"), (("resolved", "resolved_at_ms"), ("escalated", "escalated_at_ms")))
def test_signal_that_the_policy_lets_go_on(kind: str, field: str) -> None:
    """The outcome is known while the session is open; being contained is not."""
    talk = Talk(on_resolved="continue", on_escalated="continue")
    talk.say("user", "a", at=0)
    answer = talk.say("bot", type=kind, at=1)

    assert answer.closed == ()
    assert (talk.open.outcome, talk.open.contained) == (kind, None)
    assert minute(getattr(talk.open, field)) == 1


def test_recent_sessions_are_known_for_fifteen_minutes() -> None:
    """A repeat of an entry is looked for there; the last session itself is known for a day."""
    talk = Talk()
    talk.say("user", "a", at=0)
    first = talk.open.id
    closed = talk.close(at=1)
    assert list(talk.state.recent) == [(first, NOON_MS + 60_000)]
    assert minute(closed.keep_until_ms) == 1 + DAY
    talk.say("user", "b", at=16 - MS)
    assert [session for session, _ in talk.state.recent] == [first]
    opened = talk.say("user", "c", at=16)

    assert list(talk.state.recent) == []
    assert minute(talk.decisions[-1].keep_until_ms) == minute(opened.closes_at_ms) + DAY


def test_recent_sessions_are_bounded() -> None:
    """The 64 latest."""
    talk = Talk()
    ids = []
    for _ in range(70):
        talk.say("user", "a", at=0)
        ids.append(talk.open.id)
        talk.close(at=0)

    assert [session for session, _ in talk.state.recent] == ids[-64:]


def test_nothing_to_remember() -> None:
    """Entries of no session leave nothing behind."""
    talk = Talk()
    talk.say("user", type="activity", at=3)

    assert talk.decisions[-1].keep_until_ms == 0
    assert talk.decisions[-1].wake_at_ms is None


def test_close_by_api_of_what_is_not_open() -> None:
    """Another session, one that is over, one whose deadline passes with this very command: nothing is ended by it."""
    talk = Talk()
    talk.say("user", "a", at=0)
    first = talk.open.id
    talk.close(at=1)
    talk.say("user", "b", at=2)
    second = talk.open.id

    other = talk.do(Close(first), at=3)
    late = talk.do(Close(second), at=17)

    for decision, at in ((other, 3), (late, 17)):
        assert decision.answer == Answer(None, "none", 0, None, NOON_MS + at * 60_000)
    assert talk.closings == [("api", 1), ("inactivity", 17)]
    assert talk.closed[0].closing_rule == "K20"


def test_split_ends_with_the_agent_by_its_row() -> None:
    """The session of trade `agent` closes when the human leaves (B05)."""
    talk = Talk(on_handoff="split")
    talk.say("agent", type="agent.joined", at=0)
    talk.say("agent", type="agent.left", at=1)

    assert [(each.reason, each.closing_rule, each.closed_by) for each in talk.closed] == [("handoff", "B05", "m2")]


def test_agent_who_joins_after_a_reported_hand_off_ends_what_is_still_with_the_bot() -> None:
    """The hand-off was reported under `continue`; when the agent comes, the policy says `end`."""
    talk = Talk(on_handoff="continue")
    talk.say("user", "help", at=0)
    talk.say("bot", type="handoff", at=1)
    talk.change_policy(at=2, on_handoff="end")
    talk.say("agent", type="agent.joined", at=3)

    assert talk.closings == [("handoff", 3)]


def test_an_agent_joins_once() -> None:
    """The first message of the agent pauses the session; the next one is a message."""
    talk = Talk(on_handoff="pause")
    talk.say("user", "a", at=0)
    talk.say("agent", "b", at=1)
    talk.say("agent", "c", at=2)

    assert talk.open.paused
    assert talk.open.deadline_by == "m2"


def test_a_bot_s_session_that_was_handed_off_before_is_split_under_a_new_policy() -> None:
    """The hand-off was reported while the session went on; the policy splits since."""
    talk = Talk(on_handoff="continue")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)
    talk.change_policy(at=2, on_handoff="split")
    talk.say("agent", "b", at=3)

    assert talk.closings == [("handoff", 3)]
    assert talk.open.trade == "agent"
