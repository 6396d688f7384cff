"""Aivo's rows of docs/rules.md, through the HTTP API."""
# ruff: noqa: N802, D403, D415  the tests are named and described as docs/rules.md has the rows

from tests.conformance.bot import Bot, Json, minutes, reasons
from tests.conformance.conftest import BotMaker

MESSAGING = ("facebook", "whatsapp", "instagram", "telegram", "twitter", "sms")


def _after_the_users_last(it: Bot, **fields: object) -> Json:
    """A user's message, a bot's a little later, and a day of silence."""
    answer = it.say("user", "hi", **fields)
    it.wait(minutes=1)
    it.say("bot", "hello", **fields)
    it.wait(hours=25)
    return it.session(answer)


def test_A01_interactions(bot: BotMaker) -> None:
    """an interaction is each exchange, question or answer"""
    it = bot("aivo")
    for role in ("user", "bot", "bot", "user"):
        it.say(role, "well")
    it.say("user", type="activity")
    last = it.say("user", type="search")

    assert (it.session(last)["interactions"], last["sequence"]) == (4, 6)


def test_A02_all_interactions_from_start_to_end(bot: BotMaker) -> None:
    """a session is all interactions from start to end"""
    it = bot("aivo")
    first = it.say("user", "well")
    for _ in range(3):
        it.say("bot", "here you are")
        it.wait(minutes=4)
        it.say("user", "and then?")
    it.wait(minutes=5)
    session = it.session(first)

    assert (session["status"], session["interactions"], minutes(session)) == ("closed", 7, 17)
    assert len(it.entries(first)) == 7


def test_A03_web_five_minutes(bot: BotMaker) -> None:
    """web: 5 minutes after the user's last message"""
    session = _after_the_users_last(bot("aivo"), channel="web")

    assert (session["reason"], minutes(session)) == ("inactivity", 5)


def test_A04_web_user_clicks_x(bot: BotMaker) -> None:
    """web: when the user clicks X"""
    it = bot("aivo")
    it.say("user", "hi")
    it.wait(minutes=1)
    answer = it.say("user", type="chat.closed")
    session = it.session(answer)

    assert (session["reason"], session["closing_rule"], minutes(session)) == ("chat_closed", "A04", 1)


def test_A05_messaging_api_five_minutes(bot: BotMaker) -> None:
    """messaging API: 5 minutes"""
    session = _after_the_users_last(bot("aivo"), channel="api")

    assert (session["reason"], minutes(session)) == ("inactivity", 5)


def test_A06_messaging_channels_a_day(bot: BotMaker) -> None:
    """Facebook, WhatsApp, Instagram, Telegram, Twitter, SMS: 24 h"""
    it = bot("aivo")
    for channel in MESSAGING:
        session = _after_the_users_last(it, channel=channel)

        assert (session["reason"], minutes(session)) == ("inactivity", 24 * 60)


def test_A07_handed_over_to_a_human(bot: BotMaker) -> None:
    """those channels: handed over to a human"""
    it = bot("aivo")
    for channel in MESSAGING:
        it.say("user", "hi", channel=channel)
        it.wait(minutes=2)
        answer = it.say("bot", type="handoff", channel=channel)
        session = it.session(answer)

        assert (session["reason"], session["closing_rule"], session["outcome"]) == ("handoff", "A07", "handed_off")
        assert minutes(session) == 2


def test_A08_survey_answered_within_a_day(bot: BotMaker) -> None:
    """those channels: survey answered within 24 h of sending; a later answer does not count as one"""
    it = bot("aivo")
    for channel in MESSAGING:
        it.say("user", "hi", channel=channel)
        it.say("bot", type="survey.sent", channel=channel)
        it.wait(hours=23)
        in_time = it.say("user", type="survey.answered", channel=channel)
        it.say("user", "hi", channel=channel)
        it.say("bot", type="survey.sent", channel=channel)
        it.wait(hours=12)
        it.say("user", "not now", channel=channel)
        it.wait(hours=12)
        late = it.say("user", type="survey.answered", channel=channel)

        assert [ended["reason"] for ended in in_time["closed"]] == ["survey_answered"]
        assert it.session(in_time)["survey_answered_at"] is not None
        assert (late["session"], late["closed"]) == ("continued", [])
        assert it.session(late)["survey_answered_at"] is None


def test_A09_interruption_restarts(bot: BotMaker) -> None:
    """an interruption restarts: a different session, the same user"""
    it = bot("aivo")
    first = it.say("user", "hi")
    it.say("system", type="interrupted")
    second = it.say("user", "are you back?")
    sessions = it.sessions(count=2)

    assert second["session"] == "opened"
    assert [session["id"] for session in sessions] == [first["session_id"], second["session_id"]]
    assert (reasons(sessions), {session["user_id"] for session in sessions}) == (["interrupted", None], {"ann"})


def test_A10_help_five_minutes(bot: BotMaker) -> None:
    """help: 5 minutes"""
    it = bot("aivo")
    answer = it.say("user", type="article.opened", source="click", channel="help", window_id="w1")
    it.wait(hours=1)
    session = it.session(answer)

    assert (session["reason"], minutes(session)) == ("inactivity", 5)


def test_A11_help_starts(bot: BotMaker) -> None:
    """help starts by an article click, a direct link, a search that opens an article"""
    it = bot("aivo")
    for source in ("click", "link", "search"):
        answer = it.say("user", type="article.opened", source=source, channel="help", window_id=source)

        assert (answer["session"], it.session(answer)["opening_rule"]) == ("opened", "A11")


def test_A12_search_alone_is_no_session(bot: BotMaker) -> None:
    """a search without an opened article is no session"""
    it = bot("aivo")
    search = it.say("user", "refund", type="search", channel="help", window_id="w1")
    opened = it.say("user", type="article.opened", source="search", channel="help", window_id="w1")

    assert (search["session"], search["session_id"]) == ("none", None)
    assert (opened["session"], opened["sequence"]) == ("opened", 1)


def test_A13_any_number_of_searches_and_clicks(bot: BotMaker) -> None:
    """any number of searches and clicks in one session"""
    it = bot("aivo")
    answers = []
    for number in range(20):
        kind = "search" if number % 3 == 2 else "article.opened"
        answers.append(it.say("user", type=kind, source="click", channel="help", window_id="w1"))
        it.wait(minutes=4)

    assert {answer["session_id"] for answer in answers} == {answers[0]["session_id"]}
    assert answers[-1]["sequence"] == 20


def test_A14_other_window_is_another_session(bot: BotMaker) -> None:
    """an article in another window or tab is a new session"""
    it = bot("aivo")
    first, second, again = (
        it.say("user", type="article.opened", source="click", channel="help", window_id=window) for window in ("w1", "w2", "w1")
    )

    assert (first["session"], second["session"]) == ("opened", "opened")
    assert first["session_id"] != second["session_id"]
    assert again["session_id"] == first["session_id"]
