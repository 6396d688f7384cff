"""Kore.ai's rows of docs/rules.md, through the HTTP API."""
# ruff: noqa: N802, D210, D403, D415, E501  the tests are named and described as docs/rules.md has the rows

from itertools import product

from tests.conformance.bot import Bot, minutes, reasons
from tests.conformance.conftest import BotMaker

MS = 0.001
TEXTS = {"default": "Bye {user_id}", "pt": "Tchau depois de {minutes} min, {bot}", "pt-BR": "Valeu"}


def test_K01_uninterrupted_run_is_one_session(bot: BotMaker) -> None:
    """an uninterrupted run of user and bot entries is one session, and it is there for dashboards"""
    it = bot("kore")
    answers = []
    for _ in range(5):
        answers += [it.say("user", "question"), it.say("bot", "answer")]
        it.wait(minutes=14)
    it.wait(minutes=1)
    (session,) = it.archived(count=1)

    assert [answer["session"] for answer in answers] == ["opened", *["continued"] * 9]
    assert [answer["sequence"] for answer in answers] == list(range(1, 11))
    assert (session["id"], session["entries"], session["status"]) == (answers[0]["session_id"], 10, "closed")


def test_K02_billing_sessions_are_counted_apart(bot: BotMaker) -> None:
    """billing sessions are counted apart from sessions"""
    it = bot("kore")
    for _ in range(4):
        it.say("user", "question")
        it.wait(minutes=10)
    it.wait(minutes=5)
    it.archived(count=1)
    summary = it.summary()

    # One session of 45 minutes, user activity at 0, 10, 20 and 30: in the first three blocks of 15 minutes.
    assert (summary["sessions"], summary["billing_sessions"]) == (1, 3)


def test_K03_lazy_silence_alone_never_closes(bot: BotMaker) -> None:
    """lazy: silence alone never closes"""
    for preset in ("kore-7.2", "kore-legacy"):
        it = bot(preset)
        answer = it.say("user", "question", intent="pay")
        it.wait(hours=100)

        assert it.session(answer)["status"] == "open"


def test_K04_lazy_same_intent_continues(bot: BotMaker) -> None:
    """lazy 7.2: back after the silence with the same intent, the session continues"""
    it = bot("kore-7.2")
    first = it.say("user", "pay a bill", intent="pay")
    it.wait(minutes=16)
    same = it.say("user", "this one", intent="pay")
    it.wait(minutes=16)
    none = it.say("user", "well?")

    assert [same["session_id"], none["session_id"]] == [first["session_id"]] * 2


def test_K05_lazy_new_intent_starts_anew(bot: BotMaker) -> None:
    """lazy 7.2: back with a new intent, the old closes and a new one starts"""
    it = bot("kore-7.2")
    first = it.say("user", "pay a bill", intent="pay")
    it.wait(minutes=15)
    second = it.say("user", "block my card", intent="block")
    old = it.session(first)

    assert second["session"] == "opened"
    assert second["closed"] == [{"session_id": first["session_id"], "reason": "new_intent"}]
    assert (old["reason"], old["closing_rule"], it.session(second)["opening_rule"]) == ("new_intent", "K05", "K05")


def test_K06_lazy_invalid_input_starts_anew(bot: BotMaker) -> None:
    """lazy 7.2: back with input that is invalid for the intent, a new one starts"""
    it = bot("kore-7.2")
    first = it.say("user", "pay a bill", intent="pay")
    it.wait(minutes=15)
    second = it.say("user", "banana", intent="pay", intent_valid=False)

    assert (second["session"], it.session(first)["closing_rule"]) == ("opened", "K06")


def test_K07_proactive_closes_after_the_duration(bot: BotMaker) -> None:
    """proactive: closes after the duration with no entry coming in"""
    it = bot("kore")
    answer = it.say("user", "question")
    it.wait(minutes=15, seconds=-MS)
    before = it.session(answer)["status"]
    it.wait(seconds=MS)
    session = it.session(answer)

    assert before == "open"
    assert (session["status"], session["reason"], session["closing_rule"], minutes(session)) == (
        "closed",
        "inactivity",
        "K07",
        15,
    )


def test_K08_duration_is_per_bot_within_its_range(bot: BotMaker) -> None:
    """duration 15 by default; 5 and 60 accepted, 4 and 61 refused; per bot"""
    for refused in (4, 61):
        reply = bot("kore").save_policy(preset="kore", inactivity_minutes=refused)
        assert reply.status_code == 422
        assert reply.json()["errors"][0]["where"] == "inactivity_minutes"
        assert "5 to 60" in reply.json()["errors"][0]["hint"]
    by_default, short, long = bot("kore"), bot("kore", inactivity_minutes=5), bot("kore")
    assert long.save_policy(preset="kore", inactivity_minutes=60).status_code == 200
    for it, duration in ((by_default, 15), (short, 5), (long, 60)):
        answer = it.say("user", "question")
        it.wait(minutes=61)

        assert minutes(it.session(answer)) == duration


def test_K09_closes_silently_or_with_a_message(bot: BotMaker) -> None:
    """closes silently or with a message, whose text can be set per language"""
    silent, speaking = bot("kore"), bot("kore", closure_message={"texts": TEXTS})
    for it in (silent, speaking):
        it.subscribe("session.closure_message", "session.closed")
        for user, language in (("a", "pt-BR"), ("b", "pt-PT"), ("c", "de")):
            it.say("user", "oi", user_id=user, language=language)
        it.wait(minutes=15)
    texts = {
        received.event["data"]["text"] for received in speaking.webhooks(count=6) if received.type == "session.closure_message"
    }

    assert texts == {"Valeu", f"Tchau depois de 15 min, {speaking.name}", "Bye c"}
    assert [received.type for received in silent.webhooks(count=3)] == ["session.closed"] * 3


def test_K10_message_goes_before_the_close_is_told(bot: BotMaker) -> None:
    """the message goes out before `session.closed`, only on supported channels"""
    it = bot("kore", closure_message={"texts": TEXTS, "channels": ["web"]})
    it.subscribe("session.closure_message", "session.closed")
    it.say("user", "hi", channel="web")
    it.say("user", "hi", channel="ivr")
    it.wait(minutes=15)
    received = it.webhooks(count=3)

    assert [one.type for one in received if one.event["data"]["session"]["channel"] == "web"] == [
        "session.closure_message",
        "session.closed",
    ]
    assert [one.type for one in received if one.event["data"]["session"]["channel"] == "ivr"] == ["session.closed"]


def test_K11_before_7_2_return_after_the_duration_starts_anew(bot: BotMaker) -> None:
    """before 7.2: a new session once the duration has passed since the end user's last entry"""
    it = bot("kore-legacy")
    first = it.say("user", "question")
    it.wait(minutes=14)
    within = it.say("user", "more")
    it.wait(minutes=10)
    it.say("bot", "a late answer")
    it.wait(minutes=5)
    after = it.say("user", "hello again")

    assert within["session_id"] == first["session_id"]
    assert (after["session"], after["closed"]) == ("opened", [{"session_id": first["session_id"], "reason": "returned"}])


def test_K12_every_kind_of_entry_on_every_channel(bot: BotMaker) -> None:
    """a session is created for every kind of entry, on every channel"""
    it = bot("kore")
    kinds = ("message", "session.start", "conversation.started", "connect", "authorization", "agent.joined", "article.opened")
    channels = ("web", "sms", "whatsapp", "ivr", "email", "help")
    for number, (role, kind, channel) in enumerate(product(("user", "bot", "agent", "system"), kinds, channels)):
        answer = it.say(role, type=kind, channel=channel, user_id=f"user-{number}")

        assert (answer["session"], answer["sequence"]) == ("opened", 1)
        assert it.session(answer)["channel"] == channel


def test_K13_on_connect_creates_one(bot: BotMaker) -> None:
    """on-connect by script, by message and by dialog each create one"""
    it = bot("kore")
    for source in ("script", "message", "dialog"):
        answer = it.say("bot", type="connect", source=source, user_id=source)
        session = it.session(answer)

        assert (answer["session"], session["opening_rule"], session["interactive"]) == ("opened", "K13", False)
        assert it.entries(answer)[0]["source"] == source


def test_K14_one_user_entry_makes_it_interactive(bot: BotMaker) -> None:
    """one user entry makes a session interactive"""
    it = bot("kore")

    assert it.session(it.say("user", "hi"))["interactive"] is True


def test_K15_bot_starts_non_interactive(bot: BotMaker) -> None:
    """one that the bot starts is non-interactive"""
    it = bot("kore")
    it.say("bot", "Good morning!")
    answer = it.say("bot", "Anything I can do?")

    assert it.session(answer)["interactive"] is False


def test_K16_turns_interactive_at_the_first_user_entry(bot: BotMaker) -> None:
    """it turns interactive at the first user entry, the same session"""
    it = bot("kore")
    opened = it.say("bot", "Good morning!")
    before = it.session(opened)["interactive"]
    user = it.say("user", "hi")

    assert (user["session_id"], user["session"]) == (opened["session_id"], "continued")
    assert (before, it.session(opened)["interactive"]) == (False, True)


def test_K17_authorization_counts_as_the_user(bot: BotMaker) -> None:
    """giving authorization details counts as the user"""
    it = bot("kore")
    opened = it.say("bot", "Please log in")
    it.wait(minutes=10)
    it.say("system", type="authorization")
    it.wait(minutes=10)
    session = it.session(opened)

    assert (session["status"], session["interactive"], session["billing_sessions"]) == ("open", True, 1)


def test_K18_non_interactive_is_never_billed(bot: BotMaker) -> None:
    """non-interactive: never billed"""
    it = bot("kore")
    for _ in range(4):
        it.say("bot", "Anyone there?")
        it.say("user", type="activity")
        it.wait(minutes=10)
    it.wait(minutes=15)
    (session,) = it.archived(count=1)

    assert (session["interactive"], session["billing_sessions"], it.summary()["billing_sessions"]) == (False, 0, 0)


def test_K19_developers_are_flagged_and_left_out(bot: BotMaker) -> None:
    """developer entries: a session, flagged, never billed, left out of metrics unless asked for"""
    it = bot("kore")
    answer = it.say("user", "test", user_id="dev", developer=True)
    it.say("user", "question", user_id="real")
    it.wait(minutes=15)
    it.archived(count=2)
    session = it.session(answer)

    assert (answer["session"], session["developer"], session["billing_sessions"]) == ("opened", True, 0)
    assert it.summary()["sessions"] == 1
    assert it.summary(developers="true")["sessions"] == 2


def test_K20_what_closes(bot: BotMaker) -> None:
    """closed by: the silence, "discard", refresh, the close API"""
    it = bot("kore")
    it.say("user", "hi")
    it.wait(minutes=15)
    it.say("user", "hi")
    discarded = it.say("user", "forget it", type="discard")
    it.say("user", "hi")
    it.say("user", "start over", refresh=True)
    it.close(it.say("user", "hi"))
    sessions = it.sessions(count=4)

    assert reasons(sessions) == ["inactivity", "discard", "refresh", "api"]
    assert [ended["reason"] for ended in discarded["closed"]] == ["discard"]


def test_K21_closing_clears(bot: BotMaker) -> None:
    """closing clears the session, its variables without a TTL of their own, and the dialog context; variables with one live on until it ends"""
    it = bot("kore")
    it.say("user", "hi", context={"topic": "shoes"})
    it.put_variable("city", "Rio")
    it.put_variable("vip", value=True, ttl_s=3600)
    before = (sorted(it.variables()), it.context()["context"])
    it.wait(minutes=15)
    after = (it.variables(), it.context()["context"])
    it.wait(minutes=45)

    assert before == (["city", "vip"], {"topic": "shoes"})
    assert after == (["vip"], None)
    assert it.variables() == []


def test_K22_refresh_clears_everything(bot: BotMaker) -> None:
    """refresh clears everything and opens a new session"""
    it = _with_dialog(bot)
    it.put_variable("vip", value=True, ttl_s=3600)
    answer = it.say("user", "start over", refresh=True)

    assert (answer["session"], answer["sequence"]) == ("opened", 1)
    assert it.context() == {"context": None, "tags": [], "historic_tags": [], "tones": {}}
    assert it.variables() == []


def test_K23_discard_all(bot: BotMaker) -> None:
    """ "discard all": context, current and historic tags cleared, tones reset, same session"""
    for fields in ({"type": "discard.all"}, {"tags": ["discard all"]}):
        it = _with_dialog(bot)
        answer = it.say("user", "forget everything", **fields)

        assert (answer["session"], answer["sequence"], answer["closed"]) == ("continued", 3, [])
        assert it.context() == {"context": None, "tags": [], "historic_tags": [], "tones": {}}


def test_K24_discard(bot: BotMaker) -> None:
    """ "discard": context cleared; current tags := the last set of the historic ones; historic := none"""
    for fields in ({"type": "discard"}, {"tags": ["discard"]}):
        it = _with_dialog(bot, discard_closes=False)
        answer = it.say("user", "forget it", **fields)
        context = it.context()

        assert answer["session"] == "continued"
        assert (context["context"], context["tags"], context["historic_tags"]) == (None, ["old"], [])


def test_K25_lazy_modes_are_deprecated(bot: BotMaker) -> None:
    """lazy modes are answered with a deprecation notice"""
    it = bot("kore")
    for preset, lazy in (("kore-7.2", True), ("kore-legacy", True), ("kore", False)):
        saved = it.save_policy(preset=preset).json()
        validated = it.ask("POST", "/v1/policies/validate", {"preset": preset})

        assert any("deprecated" in notice for notice in saved["notices"]) is lazy
        assert validated["notices"] == saved["notices"]


def _with_dialog(bot: BotMaker, **policy: object) -> Bot:
    """Context, a current tag, a historic one, a tone."""
    it = bot("kore", **policy)
    it.say("user", "hi", tags=["old"], sentiment={"angry": 0.9})
    it.say("user", "shoes", tags=["new"], context={"topic": "shoes"})
    assert it.context() == {"context": {"topic": "shoes"}, "tags": ["new"], "historic_tags": [["old"]], "tones": {"angry": 0.9}}
    return it
