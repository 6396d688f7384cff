"""Botanalytics' rows of docs/rules.md, through the HTTP API."""
# ruff: noqa: N802, D403, D415  the tests are named and described as docs/rules.md has the rows

from tests.conformance.bot import minutes, reasons
from tests.conformance.conftest import BotMaker


def test_B01_session_in_a_conversation_in_a_channel(bot: BotMaker) -> None:
    """a session belongs to a conversation in a channel, within a time span"""
    it = bot("botanalytics")
    answers = [it.say("user", "hi", channel=channel) for channel in ("web", "facebook")]
    it.wait(minutes=15)
    web, facebook = (it.session(answer) for answer in answers)

    assert (web["conversation_id"], web["channel"]) == ("web:ann", "web")
    assert (facebook["conversation_id"], facebook["channel"]) == ("facebook:ann", "facebook")
    assert minutes(web) == minutes(facebook) == 15


def test_B02_holds_messages_queries_events_and_answers(bot: BotMaker) -> None:
    """it holds messages, queries, system events and answers"""
    it = bot("botanalytics")
    it.say("user", "hi")
    it.say("user", "where is my order?", intent="order_status")
    it.say("system", type="survey.sent")
    answer = it.say("bot", "On its way", in_reply_to="m2")

    assert [(entry["role"], entry["type"], entry["text"], entry["intent"]) for entry in it.entries(answer)] == [
        ("user", "message", "hi", None),
        ("user", "message", "where is my order?", "order_status"),
        ("system", "survey.sent", None, None),
        ("bot", "message", "On its way", None),
    ]


def test_B03_users_agents_and_bots_take_part(bot: BotMaker) -> None:
    """users, human agents and bots take part"""
    it = bot("botanalytics")
    answers = [it.say(role, "hello") for role in ("user", "agent", "bot")]

    assert it.session(answers[0])["entries_of"] == {"user": 1, "bot": 0, "agent": 0, "system": 0}
    assert answers[1]["session_id"] == answers[2]["session_id"]
    assert it.session(answers[1])["entries_of"] == {"user": 0, "bot": 1, "agent": 1, "system": 0}


def test_B04_user_or_bot_starts_it(bot: BotMaker) -> None:
    """a user's or a bot's entry starts it"""
    it = bot("botanalytics")

    assert it.say("user", "hi", user_id="a")["session"] == "opened"
    assert it.say("bot", "Good morning!", user_id="b")["session"] == "opened"


def test_B05_two_trades(bot: BotMaker) -> None:
    """user with bot, and user with agent and bot, are two trades"""
    it = bot("botanalytics")
    it.say("user", "hi")
    it.say("bot", "hello")
    it.say("bot", type="handoff")
    for role in ("agent", "user", "bot"):
        it.say(role, "hello")
    sessions = it.sessions(count=2)

    assert [(session["trade"], session["reason"]) for session in sessions] == [("bot", "handoff"), ("agent", None)]
    assert sessions[1]["entries_of"] == {"user": 1, "bot": 1, "agent": 1, "system": 0}


def test_B06_managed_900_seconds_of_either_side(bot: BotMaker) -> None:
    """managed: 900 s of silence of either side end it"""
    it = bot("botanalytics")
    first = it.say("user", "hi")
    it.wait(seconds=899)
    it.say("bot", "hello")
    it.wait(seconds=899)
    it.say("user", "well")
    it.wait(seconds=899)
    before = it.session(first)["status"]
    it.wait(seconds=1)
    session = it.session(first)

    assert (before, session["status"], session["entries"]) == ("open", "closed", 3)
    assert minutes(session, start="last_entry_at") * 60 == 900


def test_B07_counted_within_a_trade(bot: BotMaker) -> None:
    """sessions are counted within a trade"""
    it = bot("botanalytics")
    for user in ("a", "b", "c"):
        it.say("user", "hi", user_id=user)
    for user in ("a", "b"):
        it.say("bot", type="handoff", user_id=user)
        it.say("agent", "hello", user_id=user)
    it.wait(minutes=15)
    it.archived(count=5)

    assert it.summary()["by_trade"] == {"bot": 3, "agent": 2}


def test_B08_platform_signals_bound_it(bot: BotMaker) -> None:
    """platform: start and end signals bound it, whatever the silence"""
    it = bot("botanalytics-platform")
    start = it.say("bot", type="session.start")
    it.say("user", "hi")
    it.wait(hours=23)
    late = it.say("user", "still me")
    end = it.say("bot", type="session.end")
    session = it.session(start)

    assert late["session_id"] == end["session_id"] == start["session_id"]
    assert (session["reason"], session["opening_rule"], session["closing_rule"], session["entries"]) == ("ended", "B08", "B08", 4)


def test_B09_client_signal_opens_one(bot: BotMaker) -> None:
    """client: a `new session` tag or `conversation.started` opens one"""
    it = bot("botanalytics-client")
    opened = [
        it.say("user", "hi", client_session_id="s1", tags=["new session"]),
        it.say("user", "hi again", client_session_id="s1", tags=["new session"]),
        it.say("bot", type="conversation.started", client_session_id="s1"),
    ]

    assert [answer["session"] for answer in opened] == ["opened"] * 3
    assert reasons(it.sessions(count=3)) == ["superseded", "superseded", None]


def test_B10_conversation_ended_closes_and_groups(bot: BotMaker) -> None:
    """`conversation.ended` closes and groups what belongs to it"""
    it = bot("botanalytics-client")
    it.say("bot", type="conversation.started", client_session_id="s1")
    it.say("user", "hi", client_session_id="s1")
    end = it.say("bot", type="conversation.ended", client_session_id="s1")
    (session,) = it.archived(count=1)

    assert (session["reason"], session["closing_rule"]) == ("ended", "B10")
    assert [entry["type"] for entry in it.entries(end)] == ["conversation.started", "message", "conversation.ended"]


def test_B11_entries_join_the_session_that_they_name(bot: BotMaker) -> None:
    """entries join the session whose ID they carry, also when two are interleaved"""
    it = bot("botanalytics-client")
    answers = [it.say("user", f"{number}", client_session_id=name) for number in range(3) for name in ("s1", "s2")]
    sessions = it.sessions(count=2)

    assert [answer["sequence"] for answer in answers] == [1, 1, 2, 2, 3, 3]
    assert [session["status"] for session in sessions] == ["open", "open"]
    assert {session["thread"]: session["id"] for session in sessions} == {
        "s1": answers[0]["session_id"],
        "s2": answers[1]["session_id"],
    }
    nameless = it.client.post(f"{it.path}/messages", json={"user_id": "ann", "role": "user", "text": "hi"})
    assert nameless.status_code == 422
    assert nameless.json()["errors"][0]["where"] == "client_session_id"


def test_B12_each_bot_picks_its_method(bot: BotMaker) -> None:
    """each bot picks one of the three methods"""
    lasts = {}
    for method in ("inactivity", "platform", "client"):
        it = bot(method=method)
        answer = it.say("user", "hi", client_session_id="s1")
        it.wait(minutes=16)
        lasts[method] = it.session(answer)["status"]

    assert lasts == {"inactivity": "closed", "platform": "open", "client": "open"}
    refused = bot().save_policy(method="telepathy")
    assert refused.status_code == 422
    assert "client, inactivity, platform" in refused.json()["errors"][0]["hint"]


def test_B13_channels(bot: BotMaker) -> None:
    """WhatsApp, Messenger and an integration (Rasa) work as channels"""
    it = bot("botanalytics")
    for channel in ("whatsapp", "messenger", "rasa"):
        it.say("user", "hi", channel=channel)
        it.say("bot", "hello", channel=channel)
    it.wait(minutes=15)
    sessions = it.archived(count=3)

    assert {session["channel"]: session["entries"] for session in sessions} == {"whatsapp": 2, "messenger": 2, "rasa": 2}
    assert [session["channel"] for session in it.archived(count=1, channel="whatsapp")] == ["whatsapp"]
