"""The rows that a second reading of the sources found, through the HTTP API."""
# ruff: noqa: N802, D403, D415, E501  the tests are named and described as docs/rules.md has the rows

from itertools import product

import pytest

from tests.conformance.bot import Bot, Json
from tests.conformance.conftest import BotMaker

GOODBYE = {"texts": {"default": "Bye {user_id}"}}


def late_of(it: Bot, answer: Json) -> list[tuple[str, str]]:
    """Role and type of the late entries of a session, in order."""
    return [(entry["role"], entry["type"]) for entry in it.entries(answer) if entry["late"]]


def test_S01_user_says_discard(bot: BotMaker) -> None:
    """a user who says "discard", in any case and nothing else, discards (preset `kore`); "discard all" likewise; within a sentence it is a word like any (001)"""
    for preset, text in product(("kore", "kore-7.2", "kore-legacy"), ("discard", "Discard", " DISCARD ")):
        it = bot(preset)
        it.say("user", "hi", context={"topic": "shoes"}, tags=["vip"])
        answer = it.say("user", text)
        assert [ended["reason"] for ended in answer["closed"]] == ["discard"]
        assert it.context()["context"] is None

    it = bot("kore")
    it.say("user", "hi", context={"topic": "shoes"}, tags=["vip"])
    sentence, by_bot = it.say("user", "please discard it"), it.say("bot", "discard")
    assert it.context()["context"] == {"topic": "shoes"}
    cleared = it.say("user", "Discard All")
    assert [answer["session"] for answer in (sentence, by_bot, cleared)] == ["continued"] * 3
    assert it.context() == {"context": None, "tags": [], "historic_tags": [], "tones": {}}
    assert bot("aivo").say("user", "discard")["closed"] == []


def test_S02_bots_label_makes_no_new_intent(bot: BotMaker) -> None:
    """the user comes back with the same intent, though the bot labelled its own reply otherwise: the session continues (001, 7.2)"""
    it = bot("kore-7.2")
    first = it.say("user", "pay a bill", intent="pay")
    it.say("bot", "which one?", intent="choose_bill")
    it.wait(minutes=16)
    same = it.say("user", "the first", intent="pay")
    it.say("user", "hm")
    it.say("bot", "so you want to cancel", intent="cancel")
    it.wait(minutes=16)
    by_bot = it.say("user", "yes", intent="cancel")
    it.wait(minutes=16)
    other = it.say("user", "my card", intent="block")

    assert [answer["session_id"] for answer in (same, by_bot)] == [first["session_id"]] * 2
    assert (other["session"], it.session(other)["opening_rule"]) == ("opened", "K05")
    assert it.session(first)["intents"] == ["pay", "cancel"]


def test_S03_discard_brings_back_the_last_set_of_tags(bot: BotMaker) -> None:
    """tags first, then second, then third, then discard: current is second, historic is empty; sets of several tags come back whole (001)"""
    for sets, policy in product(
        ((["first"], ["second"], ["third"]), (["a", "b"], ["c", "d", "e"], ["f"])), ({}, {"discard_closes": False})
    ):
        it = bot("kore", **policy)
        for tags in sets:
            it.say("user", "hi", tags=tags)
        before = it.context()
        it.say("user", "discard")
        after = it.context()

        assert (before["tags"], before["historic_tags"]) == (sets[2], [sets[0], sets[1]])
        assert (after["tags"], after["historic_tags"]) == (sets[1], [])


SIGNALS = ("session.end", "chat.closed", "handoff", "agent.left", "escalated", "resolved", "survey.sent", "survey.answered")
OTHERS = ("interrupted", "search", "activity", "discard", "discard.all")


def test_S04_nothing_that_was_accepted_is_nowhere(bot: BotMaker) -> None:
    """no entry that was answered 200 is nowhere: what starts nothing is a late entry of the last session or in the bot's list of entries without a session (001: "for all interactions")"""
    it = bot("kore")
    kinds = [*SIGNALS, *OTHERS]
    nowhere = [it.say("system", type=kind, user_id="new", text=kind) for kind in kinds]
    first = it.say("user", "hi")
    it.close(first)
    late = [it.say("system", type=kind, text=kind) for kind in kinds]
    session = it.session(first)

    assert {(answer["session"], answer["session_id"]) for answer in nowhere} == {("none", None)}
    assert {(answer["session"], answer["session_id"]) for answer in late} == {("late", first["session_id"])}
    assert [answer["sequence"] for answer in late] == list(range(2, 2 + len(kinds)))
    assert late_of(it, first) == [("system", kind) for kind in kinds]
    assert (session["entries"], session["late_entries"], session["billing_sessions"]) == (1, len(kinds), 1)
    listed = it.unassigned(count=len(kinds))
    assert sorted((entry["message"]["type"], entry["message"]["user_id"], entry["reason"]) for entry in listed) == sorted(
        (kind, "new", "no_session") for kind in kinds
    )


def test_S04_late_entries_have_a_day(bot: BotMaker) -> None:
    """after 24 h an entry that starts nothing is with no session"""
    it = bot("kore")
    first = it.say("user", "hi")
    it.close(first)
    it.wait(hours=23, minutes=59)
    in_time = it.say("bot", type="survey.sent")
    it.wait(minutes=1)
    too_late = it.say("bot", type="survey.sent")

    assert (in_time["session"], in_time["session_id"]) == ("late", first["session_id"])
    assert (too_late["session"], too_late["session_id"]) == ("none", None)
    assert len(it.unassigned(count=1)) == 1


def test_S04_late_entry_is_sent_as_webhook(bot: BotMaker) -> None:
    """a late entry is sent as `session.updated`, and a repeat of it gets the same answer"""
    it = bot("kore")
    it.subscribe("session.closed", "session.updated")
    first = it.say("user", "hi", message_id="m1")
    it.close(first)
    it.webhooks(count=1)
    late = it.say("bot", type="resolved", message_id="m2", session_metadata={"case": 7})
    again = it.say("bot", type="resolved", message_id="m2", session_metadata={"case": 7})
    _closed, updated = it.webhooks(count=2)
    data = updated.event["data"]

    assert (again["duplicate"], again["sequence"], again["session"]) == (True, late["sequence"], "late")
    assert (updated.type, data["rule"], data["session"]["id"]) == ("session.updated", "late", first["session_id"])
    assert (data["message"]["message_id"], data["message"]["late"]) == ("m2", True)
    assert (data["session"]["outcome"], data["session"]["session_metadata"]) == ("resolved", {"case": 7})


def test_S05_survey_after_resolved(bot: BotMaker) -> None:
    """a survey sent and answered after `resolved` had closed the session is on that session, within 24 h (003)"""
    it = bot("aivo")
    first = it.say("user", "hi", channel="whatsapp")
    it.say("bot", type="resolved", channel="whatsapp")
    it.say("bot", type="survey.sent", channel="whatsapp")
    it.wait(hours=23)
    it.say("user", type="survey.answered", channel="whatsapp")
    session = it.session(first)

    assert (session["reason"], session["outcome"], session["late_entries"]) == ("resolved", "resolved", 2)
    assert session["survey_sent_at"] is not None
    assert session["survey_answered_at"] is not None
    assert late_of(it, first) == [("bot", "survey.sent"), ("user", "survey.answered")]


def test_S06_agent_who_just_speaks(bot: BotMaker) -> None:
    """an agent who just speaks: `split` begins the other trade, `end` closes, `reamaze` counts on (000, 003, 002)"""
    split, end, on = bot("botanalytics"), bot("aivo"), bot("reamaze")
    asked = [it.say("user", "hi", channel="whatsapp") for it in (split, end, on)]
    spoken = [it.say("agent", "hello", channel="whatsapp") for it in (split, end, on)]
    again = [it.say("agent", "still here", channel="whatsapp") for it in (split, end, on)]

    assert [answer["session"] for answer in spoken] == ["opened", "continued", "continued"]
    assert [[ended["reason"] for ended in answer["closed"]] for answer in spoken] == [["handoff"], ["handoff"], []]
    assert (split.session(asked[0])["trade"], split.session(spoken[0])["trade"]) == ("bot", "agent")
    assert again[0]["session_id"] == spoken[0]["session_id"]
    assert end.session(asked[1])["closing_rule"] == "A07"
    assert (again[1]["session"], end.session(again[1])["trade"]) == ("opened", "agent")
    assert (on.session(spoken[2])["handed_off_at"], again[2]["sequence"]) == (None, 3)


def test_S06_several_agents(bot: BotMaker) -> None:
    """agents after the first are in the session of trade `agent`"""
    it = bot("botanalytics")
    it.say("user", "hi")
    first = it.say("agent", type="agent.joined")
    others = [
        it.say("agent", "hello"),
        it.say("agent", type="agent.joined"),
        it.say("agent", "I take over"),
        it.say("user", "fine"),
    ]

    assert {answer["session_id"] for answer in others} == {first["session_id"]}
    assert [session["trade"] for session in it.sessions(count=2)] == ["bot", "agent"]


def test_S07_after_the_agent_left(bot: BotMaker) -> None:
    """after `agent.left` under `split` the next session is of trade `bot` (000)"""
    it = bot("botanalytics")
    it.say("user", "hi")
    it.say("bot", type="handoff")
    it.say("agent", "hello")
    it.say("agent", type="agent.left")
    it.say("user", "thanks")
    it.say("bot", "you are welcome")
    sessions = it.sessions(count=3)

    assert [session["trade"] for session in sessions] == ["bot", "agent", "bot"]
    assert sessions[2]["entries"] == 2


def test_S08_agent_who_resolves_is_no_hand_off(bot: BotMaker) -> None:
    """`resolved` reported by an agent is no hand-off; the example of 002 gives 2 of 3 contained, 66 %, also when an agent answered"""
    it = bot("reamaze")
    for user, kind in (("a", "resolved"), ("b", "resolved"), ("c", "escalated")):
        it.say("user", "hi", user_id=user)
        it.say("bot", "hello", user_id=user)
        it.say("agent", "I can help", user_id=user)
        it.say("agent", type=kind, user_id=user)
    sessions = it.archived(count=3)

    assert [session["handed_off_at"] for session in sessions] == [None] * 3
    assert it.summary()["contained"] == {"part": 2, "whole": 3, "percent": 66}


def test_S09_platform_after_the_end_signal(bot: BotMaker) -> None:
    """platform: after the end signal, a bot's entry opens nothing and is kept as late; a user's opens (000)"""
    for policy in ({"preset": "botanalytics-platform"}, {"method": "platform"}):
        it = bot(**policy)
        first = it.say("bot", type="session.start")
        it.say("user", "hi")
        it.say("bot", type="session.end")
        after = it.say("bot", "One more thing")
        back = it.say("user", "hi again")

        assert (after["session"], after["session_id"]) == ("late", first["session_id"])
        assert late_of(it, first) == [("bot", "message")]
        assert back["session"] == "opened"


def test_S10_help_begins_with_an_article(bot: BotMaker) -> None:
    """`help` under `aivo`: only an article begins a session (003)"""
    it = bot("aivo")
    fields = {"channel": "help", "window_id": "w1"}
    before = [it.say("user", "hi", **fields), it.say("bot", type="connect", **fields), it.say("user", type="search", **fields)]
    article = it.say("user", type="article.opened", source="link", **fields)
    after = it.say("user", "thanks", **fields)

    assert [answer["session"] for answer in before] == ["none"] * 3
    assert (article["session"], after["session"], after["sequence"]) == ("opened", "continued", 2)
    assert it.say("user", "hi")["session"] == "opened"


def test_S11_one_conversation_on_two_channels(bot: BotMaker) -> None:
    """the same conversation id on web and on whatsapp: two sessions, each with its channel's clock (000: "in a thread in a channel")"""
    it = bot("aivo")
    channels = ("web", "whatsapp", "sms")
    first = {channel: it.say("user", "hi", conversation_id="c7", channel=channel) for channel in channels}
    again = {channel: it.say("user", "and", conversation_id="c7", channel=channel) for channel in channels}
    it.wait(minutes=5)
    status = {channel: it.session(first[channel])["status"] for channel in channels}
    it.wait(hours=24)

    assert {answer["session"] for answer in first.values()} == {"opened"}
    assert [again[channel]["session_id"] == first[channel]["session_id"] for channel in channels] == [True] * 3
    assert status == {"web": "closed", "whatsapp": "open", "sms": "open"}
    assert {session["channel"] for session in it.sessions("c7", count=3)} == set(channels)


def test_S12_containment_is_of_users_who_spoke(bot: BotMaker) -> None:
    """three visitors who never spoke and one user handed off: contained 0 of 1"""
    it = bot()
    for user in ("a", "b", "c"):
        it.say("bot", type="connect", user_id=user)
        it.say("bot", "How can I help?", user_id=user)
    it.say("user", "a human, please", user_id="d")
    it.say("bot", type="handoff", user_id="d")
    it.wait(minutes=15)
    it.archived(count=4)

    assert it.summary()["contained"] == {"part": 0, "whole": 1, "percent": 0}


@pytest.mark.parametrize("names_the_event", (False, True))
def test_S13_goodbye_opens_nothing(bot: BotMaker, *, names_the_event: bool) -> None:
    """a bot that reports our good-bye as an ordinary message opens nothing; a day of it leaves one closure message"""
    it = bot(closure_message=GOODBYE)
    it.subscribe("session.closure_message", "session.opened")
    first = it.say("user", "hi")
    relayed: list[Json] = []
    for _ in range(24 * 4):
        it.wait(minutes=15)
        goodbyes = [received for received in it.webhooks(count=2) if received.type == "session.closure_message"]
        for received in goodbyes[len(relayed) :]:
            data = received.event["data"]
            named = {"in_reply_to": data["event_id"]} if names_the_event else {}
            relayed.append(it.say("bot", data["text"], **named))

    assert [(answer["session"], answer["session_id"]) for answer in relayed] == [("late", first["session_id"])]
    assert sorted(received.type for received in it.webhooks(count=2)) == ["session.closure_message", "session.opened"]


def test_S13_no_goodbye_to_a_session_without_a_user(bot: BotMaker) -> None:
    """ruling 4: `to: all` says good-bye to everyone, the default only to users who took part"""
    for to, events in (("interactive", ["session.closed"]), ("all", ["session.closure_message", "session.closed"])):
        it = bot(closure_message={**GOODBYE, "to": to})
        it.subscribe("session.closure_message", "session.closed")
        it.say("bot", type="connect")
        it.wait(minutes=15)

        assert [received.type for received in it.webhooks(count=len(events))] == events


def test_S14_entry_of_a_client_session_that_ended(bot: BotMaker) -> None:
    """the method `client` entry of a session that ended opens none (000)"""
    it = bot("botanalytics-client")
    first = it.say("user", "hi", client_session_id="s1")
    it.say("bot", type="conversation.ended", client_session_id="s1")
    after = [it.say(role, "and", client_session_id="s1") for role in ("user", "bot", "agent")]
    other = it.say("user", "hi", client_session_id="s2")

    assert {(answer["session"], answer["session_id"]) for answer in after} == {("late", first["session_id"])}
    assert late_of(it, first) == [(role, "message") for role in ("user", "bot", "agent")]
    assert other["session"] == "opened"
