"""Re:amaze's rows of docs/rules.md, through the HTTP API."""
# ruff: noqa: N802, D403, D415  the tests are named and described as docs/rules.md has the rows

from tests.conformance.bot import minutes, reasons
from tests.conformance.conftest import BotMaker


def test_R01_conversation_is_the_thread(bot: BotMaker) -> None:
    """a conversation is the thread (email, chat, messaging); later replies stay in it"""
    it = bot("reamaze")
    for channel in ("email", "chat", "sms"):
        for _ in range(3):
            it.say("user", "hi", channel=channel)
            it.wait(hours=30)
        named = [it.say("user", "hi", channel=channel, conversation_id=f"{channel}-7", user_id=user) for user in ("ann", "bob")]
        sessions = it.sessions(f"{channel}:ann", count=3)

        assert {session["conversation_id"] for session in sessions} == {f"{channel}:ann"}
        assert named[0]["session_id"] == named[1]["session_id"]


def test_R02_many_sessions(bot: BotMaker) -> None:
    """one conversation has many sessions"""
    it = bot("reamaze")
    for _ in range(5):
        it.say("user", "hi")
        it.wait(minutes=15)
    sessions = it.sessions(count=5)

    assert [session["previous_session_id"] for session in sessions] == [None, *(session["id"] for session in sessions[:-1])]


def test_R03_count_only_where_a_bot_takes_part(bot: BotMaker) -> None:
    """sessions count only where a bot takes part"""
    it = bot("reamaze")
    with_bot = [it.say("user", "hi", user_id="a"), it.say("bot", "hello", user_id="a")][0]
    without = [it.say("user", "hi", user_id="b"), it.say("agent", "hello", user_id="b")][0]
    it.wait(minutes=15)
    it.archived(count=2)
    summary = it.summary()

    assert (it.session(with_bot)["counted"], it.session(without)["counted"]) == (True, False)
    assert (summary["sessions"], summary["not_counted"]) == (1, 1)


def test_R04_several_replies_of_both_sides(bot: BotMaker) -> None:
    """a session holds several customer and agent replies"""
    it = bot("reamaze")
    answers = [it.say(role, "well") for role in ("user", "agent", "user", "agent", "agent", "user")]
    session = it.session(answers[0])

    assert len({answer["session_id"] for answer in answers}) == 1
    assert (session["entries_of"]["user"], session["entries_of"]["agent"]) == (3, 3)


def test_R05_all_before_its_end_belongs_to_it(bot: BotMaker) -> None:
    """all before its end belongs to it"""
    it = bot("reamaze")
    answers = [it.say("user", "hi"), it.say("bot", "hello"), it.say("user", type="search"), it.say("bot", type="resolved")]
    after = it.say("user", "one more thing")

    assert {answer["session_id"] for answer in answers} == {answers[0]["session_id"]}
    assert len(it.entries(answers[0])) == 4
    assert after["session_id"] != answers[0]["session_id"]


def test_R06_ends_by_silence_resolution_or_escalation(bot: BotMaker) -> None:
    """it ends by silence, by being resolved, by escalation at once"""
    it = bot("reamaze")
    it.say("user", "hi")
    it.wait(minutes=15)
    for kind in ("resolved", "escalated"):
        it.say("user", "hi")
        it.wait(minutes=1)
        answer = it.say("bot", type=kind)
        assert [ended["reason"] for ended in answer["closed"]] == [kind]
    sessions = it.sessions(count=3)

    assert reasons(sessions) == ["inactivity", "resolved", "escalated"]
    assert [minutes(session) for session in sessions] == [15, 1, 1]


def test_R07_change_of_topic_never_ends_it(bot: BotMaker) -> None:
    """a change of topic never ends it"""
    it = bot("reamaze")
    answers = [
        it.say("user", "hi", intent=topic, context={"topic": topic}, tags=[topic]) for topic in ("order", "refund", "jobs")
    ]

    assert len({answer["session_id"] for answer in answers}) == 1
    assert it.session(answers[0])["intent"] == "jobs"


def test_R08_reply_after_the_end(bot: BotMaker) -> None:
    """a reply after the end: new session, same conversation"""
    it = bot("reamaze")
    first = it.say("user", "hi")
    it.say("bot", type="resolved")
    second = it.say("user", "thanks")

    assert second["session"] == "opened"
    assert it.session(first)["conversation_id"] == it.session(second)["conversation_id"]


def test_R09_metrics_are_per_session(bot: BotMaker) -> None:
    """metrics are per session"""
    it = bot("reamaze")
    for replies in (1, 2):
        it.say("user", "hi")
        it.wait(seconds=30 * replies)
        for _ in range(replies):
            it.say("bot", "hello")
        it.wait(minutes=15)
    sessions = it.sessions(count=2)

    assert [session["interactions"] for session in sessions] == [2, 3]
    assert [session["first_response_ms"] for session in sessions] == [30_000, 60_000]
    assert [minutes(session) for session in sessions] == [15.5, 16]


def test_R10_containment(bot: BotMaker) -> None:
    """resolved, resolved, escalated: containment 2/3, shown as 66 %"""
    it = bot("reamaze")
    for kind in ("resolved", "resolved", "escalated"):
        it.say("user", "hi")
        it.say("bot", "hello")
        it.say("bot", type=kind)
    sessions = it.archived(count=3)
    summary = it.summary()

    assert [(session["outcome"], session["contained"]) for session in sessions] == [
        ("resolved", True),
        ("resolved", True),
        ("escalated", False),
    ]
    assert summary["contained"] == {"part": 2, "whole": 3, "percent": 66}
    assert summary["by_outcome"] == {"resolved": 2, "escalated": 1}
