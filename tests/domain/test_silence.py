"""Closing by silence: clocks, deadlines, reminders, closure messages, lazy closing, and what a changed policy does to them."""

from typing import Any

import pytest

from app.domain.records import Wake
from app.domain.strand import event_id
from tests.domain.talk import NOON_MS, Talk, minute

MS = 1 / 60_000
DAY = 24 * 60
TEXTS = {"default": "{minutes} min, {user_id}, {bot}", "pt": "pt", "pt-BR": "br"}


def deadline(talk: Talk) -> float:
    return minute(talk.open.deadline_at_ms)


@pytest.mark.parametrize(
    ("clock", "role", "kind", "expected"),
    (
        ("any", "bot", "message", 25),
        ("any", "system", "message", 25),
        ("any", "user", "activity", 25),
        ("any", "bot", "activity", 25),
        ("user", "bot", "message", 15),
        ("user", "agent", "message", 15),
        ("user", "bot", "activity", 15),
        ("user", "user", "message", 25),
        ("user", "user", "activity", 25),
        ("user", "user", "search", 25),
        ("user", "system", "authorization", 25),
    ),
)
def test_which_entry_restarts_the_clock(clock: str, role: str, kind: str, expected: float) -> None:
    """`any`: every entry. `user`: what the user does, also by proxy (K17)."""
    talk = Talk(inactivity_clock=clock)
    talk.say("user", "hi", at=0)

    answer = talk.say(role, type=kind, at=10)

    assert deadline(talk) == expected
    assert minute(answer.closes_at_ms) == expected
    assert talk.open.deadline_by == ("m2" if expected == 25 else "m1")


def test_user_clock_counts_from_any_entry_until_the_user_takes_part() -> None:
    """Ruling 4: non-interactive sessions close like any other, counted from their last entry."""
    talk = Talk(inactivity_clock="user")
    talk.say("bot", "hello?", at=0)
    talk.say("bot", "anyone?", at=10)
    before = deadline(talk)
    talk.say("user", "yes", at=12)
    talk.say("bot", "good", at=20)

    assert (before, deadline(talk)) == (25, 27)


def test_deadline_falls_due_at_its_millisecond() -> None:
    """`now >= deadline` means over."""
    for at, closings in ((15 - MS, []), (15, [("inactivity", 15)])):
        talk = Talk()
        talk.say("user", "hi", at=0)
        talk.wake(at=at)

        assert talk.closings == closings


def test_open_session_wants_to_be_woken_at_its_deadline() -> None:
    """And a strand without one not at all."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    opened = talk.decisions[-1]
    closed = talk.wake(at=15)

    assert opened.wake_at_ms == NOON_MS + 15 * 60_000
    assert closed.wake_at_ms is None


def test_wake_for_nothing_changes_nothing() -> None:
    """The very same state, so that nothing need be written."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    state = talk.state

    assert talk.do(Wake(), at=3).state is state


@pytest.mark.parametrize(
    "policy",
    (
        {"closing": "on_return"},
        {"closing": "on_new_intent"},
        {"method": "platform"},
        {"method": "platform", "closing": "proactive", "inactivity_clock": "user"},
    ),
)
def test_what_silence_does_not_close_is_abandoned_in_the_end(policy: dict[str, Any]) -> None:
    """`abandon_after_hours` after the last entry of anyone."""
    talk = Talk(abandon_after_hours=2, **policy)
    talk.say("user", "hi", at=0)
    talk.say("bot", "hello", at=10)

    assert deadline(talk) == 130
    talk.wake(at=130 - MS)
    assert talk.closed == []
    talk.wake(at=130)
    assert talk.closings == [("abandoned", 130)]
    assert talk.closed[0].closing_rule == "abandon_after_hours"


def test_client_method_is_abandoned_in_the_end() -> None:
    """As the platform's."""
    talk = Talk(method="client", abandon_after_hours=2)
    talk.say("user", "hi", client_session_id="s", at=0)

    assert deadline(talk) == 120


def test_nothing_stays_open_longer_than_allowed() -> None:
    """`max_duration_hours` after the opening, however busy the session is."""
    talk = Talk(max_duration_hours=1)
    for at in range(0, 60, 10):
        talk.say("user", "more", at=at)

    assert deadline(talk) == 60
    talk.wake(at=60)
    assert talk.closings == [("max_duration", 60)]
    assert talk.closed[0].closing_rule == "max_duration_hours"
    assert talk.closed[0].outcome == "abandoned"


def test_silence_decides_where_both_end_at_once() -> None:
    """At the same instant the reason is the silence."""
    talk = Talk(max_duration_hours=1, inactivity_minutes=60)
    talk.say("user", "hi", at=0)
    talk.wake(at=61)

    assert talk.closings == [("inactivity", 60)]


def test_being_abandoned_decides_where_both_end_at_once() -> None:
    """As with the silence; by default both take a week."""
    talk = Talk(closing="on_return")
    talk.say("user", "hi", at=0)
    talk.wake(at=7 * DAY)

    assert talk.closings == [("abandoned", 7 * DAY)]


def test_reminder_comes_at_its_time_and_once() -> None:
    """Before the deadline, in the user's language, with the deadline; the close comes after it."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS})
    talk.say("user", "oi", language="pt-BR", at=0)
    wake_at_ms = talk.decisions[-1].wake_at_ms
    early = talk.wake(at=11 - MS)
    reminded = talk.wake(at=11)
    again = talk.wake(at=12)
    closed = talk.wake(at=15)

    assert minute(wake_at_ms) == 11
    assert early.events == ()
    assert [(event.type, event.rule, minute(event.at_ms)) for event in reminded.events] == [("session.reminder", "reminder", 11)]
    assert reminded.events[0].data == {"language": "pt-BR", "text": "br", "closes_at": "2026-11-21T12:15:00.000Z"}
    assert minute(reminded.wake_at_ms) == 15
    assert again.events == ()
    assert [event.type for event in closed.events] == ["session.closed"]
    assert minute(talk.closed[0].reminded_at_ms) == 11


def test_reminder_that_was_slept_through_comes_before_the_close() -> None:
    """Both in one decision, each with its own instant."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS})
    talk.say("user", "oi", at=0)
    decision = talk.wake(at=60)

    assert [(event.type, minute(event.at_ms)) for event in decision.events] == [("session.reminder", 11), ("session.closed", 15)]
    assert decision.events[0].session.closed_at_ms is None


def test_entry_cancels_the_reminder() -> None:
    """Each silence has its own."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS})
    talk.say("user", "a", at=0)
    talk.say("user", "b", at=10)
    assert talk.wake(at=11).events == ()
    talk.wake(at=21)
    talk.say("user", "c", at=22)
    talk.wake(at=33)

    assert [minute(event.at_ms) for event in talk.events if event.type == "session.reminder"] == [21, 33]


def test_bot_that_says_the_reminder_does_not_prolong_the_session() -> None:
    """Else the session would be reminded for ever; what the user or another entry says does restart the clock."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS})
    talk.say("user", "a", at=0)
    relay: dict[str, Any] = {"in_reply_to": event_id(talk.wake(at=11).events[0])}
    said = talk.say("bot", "still there?", at=12, **relay)

    assert (said.session, said.sequence, minute(said.closes_at_ms)) == ("continued", 2, 15)
    assert minute(talk.decisions[-1].wake_at_ms) == 15
    talk.say("bot", "by the way", at=13)
    assert deadline(talk) == 28
    talk.say("bot", "late relay", at=14, **relay)
    assert deadline(talk) == 29


def test_user_clock_keeps_the_reminder_through_a_bots_entry() -> None:
    """An entry that does not move the deadline does not cancel the reminder."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS}, inactivity_clock="user")
    talk.say("user", "a", at=0)
    talk.say("bot", "b", at=10)
    assert [event.type for event in talk.wake(at=11).events] == ["session.reminder"]
    talk.say("bot", "c", at=12)

    assert minute(talk.decisions[-1].wake_at_ms) == 15


def test_no_reminder_where_none_can_be_shown_or_none_is_due() -> None:
    """Not on other channels, not for lazy closing, not before the longest duration."""
    spoken = {"minutes": 4, "texts": TEXTS}
    policies: list[dict[str, Any]] = [
        {"reminder": {**spoken, "channels": ["sms"]}},
        {"reminder": spoken, "closing": "on_return"},
        {
            "reminder": {**spoken, "minutes": 1},
            "inactivity_minutes": 60,
            "channels": {"web": {"max_duration_hours": 1, "inactivity_minutes": 90}},
        },
    ]
    for policy in policies:
        talk = Talk(**policy)
        talk.say("user", "a", at=0)
        talk.wake(at=59)
        talk.wake(at=9 * DAY)

        assert [event.type for event in talk.events] == ["session.opened", "session.closed"]
        assert talk.closed[0].reminded_at_ms is None


def test_reminder_on_a_channel_that_shows_it() -> None:
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS, "channels": ["sms", "web"]})
    talk.say("user", "a", at=0)

    assert [event.type for event in talk.wake(at=11).events] == ["session.reminder"]


@pytest.mark.parametrize(
    ("language", "said"),
    (("pt-BR", ("pt-BR", "br")), ("pt_br", ("pt-BR", "br")), ("pt-PT", ("pt", "pt")), ("fr", ("default", "15 min, ann, shop"))),
)
def test_closure_message_is_in_the_sessions_language(language: str, said: tuple[str, str]) -> None:
    """The one seen last; `pt-BR` falls back to `pt`, then to the default."""
    talk = Talk(closure_message={"texts": TEXTS})
    talk.say("user", "oi", language="en", at=0)
    talk.say("user", "oi", language=language, at=0)
    found = talk.wake(at=15).events[0]

    assert found.data == {"language": said[0], "text": said[1]}
    assert found.session == talk.closed[0]


def test_closure_message_is_only_for_silence_and_only_where_it_shows() -> None:
    """Other closes are silent; so is a channel that cannot show it."""
    spoken = {"texts": TEXTS}
    ended = Talk(closure_message=spoken)
    ended.say("user", "hi", at=0)
    ended.say("user", type="session.end", at=1)
    elsewhere = Talk(closure_message={**spoken, "channels": ["sms"]})
    shown = Talk(closure_message={**spoken, "channels": ["sms", "web"]})
    shown.say("user", "hi", at=0)
    assert [event.type for event in shown.wake(at=15).events] == ["session.closure_message", "session.closed"]
    elsewhere.say("user", "hi", at=0)
    elsewhere.wake(at=15)
    lazy = Talk(closure_message=spoken, closing="on_return")
    lazy.say("user", "hi", at=0)
    lazy.wake(at=8 * DAY)

    for talk in (ended, elsewhere, lazy):
        assert [event.type for event in talk.events] == ["session.opened", "session.closed"]


def test_channel_has_its_own_silence() -> None:
    """The policy of the session's channel counts."""
    for channel, minutes in (("whatsapp", DAY), ("web", 5)):
        answer = Talk(preset="aivo").say("user", "hi", channel=channel, conversation_id="c", at=0)

        assert minute(answer.closes_at_ms) == minutes


@pytest.mark.parametrize(
    ("intent", "valid", "expected"),
    (
        ("pay", True, "continued"),
        (None, True, "continued"),
        ("cancel", True, "opened"),
        ("pay", False, "opened"),
        (None, False, "opened"),
    ),
)
def test_new_intent_after_the_silence(intent: str | None, valid: bool, expected: str) -> None:  # noqa: FBT001  a column of the table
    """K04 to K06; the clock is the user's in this preset."""
    talk = Talk(preset="kore-7.2")
    talk.say("user", "pay", intent="pay", at=0)
    talk.say("bot", "how much?", at=14)

    answer = talk.say("user", "well", intent=intent, intent_valid=valid, at=15)

    assert answer.session == expected
    if expected == "opened":
        rule = "K05" if valid else "K06"
        assert talk.closings == [("new_intent", 15)]
        assert talk.emitted == [("session.opened", "B04"), ("session.closed", rule), ("session.opened", rule)]


def test_first_intent_after_the_silence_is_new() -> None:
    """A session in which no intent was seen has none that could be the same."""
    talk = Talk(preset="kore-7.2")
    talk.say("user", "hm", at=0)

    assert talk.say("user", "pay", intent="pay", at=20).session == "opened"


def test_lazy_closing_within_the_silence_and_by_others_continues() -> None:
    """Only the user's return, only after the silence."""
    for closing in ("on_return", "on_new_intent"):
        talk = Talk(closing=closing, inactivity_clock="user")
        talk.say("user", "a", intent="x", at=0)
        answers = [
            talk.say("user", "b", intent="y", at=15 - MS),
            talk.say("bot", "c", intent="z", at=40),
            talk.say("user", type="search", intent="z", at=41),
        ]

        assert [answer.session for answer in answers] == ["continued"] * 3


def test_return_after_the_silence() -> None:
    """K11, whatever is said; authorization details count as the user's."""
    by_user: tuple[tuple[str, dict[str, Any]], ...] = (("user", {}), ("bot", {"type": "authorization"}))
    for role, fields in by_user:
        talk = Talk(preset="kore-legacy")
        talk.say("user", "a", at=0)
        talk.say("bot", "b", at=14)
        talk.say(role, at=15, **fields)

        assert talk.closings == [("returned", 15)]
        assert talk.emitted[1:] == [("session.closed", "K11"), ("session.opened", "K11")]


def test_typing_does_not_undo_a_silence_that_has_passed() -> None:
    """Else a user who types before sending would never start another session. Within the silence it restarts the clock."""
    late = Talk(preset="kore-legacy")
    late.say("user", "a", at=0)
    late.say("user", type="activity", at=20)
    assert late.say("user", "b", at=20).session == "opened"

    early = Talk(preset="kore-legacy")
    early.say("user", "a", at=0)
    early.say("user", type="activity", at=10)
    assert early.say("user", "b", at=20).session == "continued"


def test_shorter_policy_closes_at_once_but_not_before_the_change() -> None:
    """And a deadline that is still ahead moves to where the new policy has it."""
    overdue, ahead = Talk(), Talk()
    overdue.say("user", "hi", at=0)
    overdue.change_policy(inactivity_minutes=5, at=10)
    ahead.say("user", "hi", at=7)
    ahead.change_policy(inactivity_minutes=5, at=10)

    assert overdue.closings == [("inactivity", 10)]
    assert overdue.closed[0].policy_version == 2
    assert deadline(ahead) == 12
    assert (ahead.open.policy_version, ahead.open.deadline_by) == (2, None)
    assert minute(ahead.decisions[-1].wake_at_ms) == 12


def test_longer_policy_prolongs_what_is_open_and_not_what_was_over() -> None:
    """A deadline that had passed at the change was final, under the version of then."""
    prolonged, over, at_the_change = Talk(), Talk(), Talk()
    for talk, said_at in ((prolonged, 0), (over, -6), (at_the_change, -5)):
        talk.say("user", "hi", at=said_at)
        talk.change_policy(inactivity_minutes=30, at=10)

    assert deadline(prolonged) == 30
    assert over.closings == [("inactivity", 9)]
    assert at_the_change.closings == [("inactivity", 10)]
    assert over.closed[0].policy_version == at_the_change.closed[0].policy_version == 1


def test_change_is_met_by_whatever_comes_first() -> None:
    """An entry or a wake that finds another version moves the deadline as `ApplyPolicy` does."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    talk.change_policy(inactivity_minutes=5, at=3)
    late = Talk()
    late.say("user", "hi", at=0)
    late.bot = talk.bot
    late.say("user", "again", at=6)

    assert late.closings == [("inactivity", 5)]


def test_change_of_clock_or_of_duration_never_closes_in_the_past() -> None:
    """Natural deadlines before the change become the change."""
    clocks, durations = Talk(), Talk()
    clocks.say("user", "hi", at=0)
    clocks.say("bot", "hello", at=14)
    clocks.change_policy(inactivity_clock="user", inactivity_minutes=10, at=16)
    for at in range(0, 130, 10):
        durations.say("user", "hi", at=at)
    durations.change_policy(max_duration_hours=1, at=125)

    assert clocks.closings == [("inactivity", 16)]
    assert durations.closings == [("max_duration", 125)]


def test_policy_brings_a_reminder_to_open_sessions() -> None:
    """At its time if that is ahead; at the change if it has passed and the deadline has not."""
    for said_at, reminded_at in ((5, 16), (0, 12)):
        talk = Talk()
        talk.say("user", "hi", at=said_at)
        talk.change_policy(reminder={"minutes": 4, "texts": TEXTS}, at=12)
        talk.wake(at=said_at + 14)

        assert [minute(event.at_ms) for event in talk.events if event.type == "session.reminder"] == [reminded_at]


def test_policy_that_drops_the_reminder_drops_it_for_open_sessions() -> None:
    """Even one that is due in the very moment of the change."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS})
    talk.say("user", "hi", at=0)
    talk.change_policy(at=11)
    talk.wake(at=12)

    assert [event.type for event in talk.events] == ["session.opened"]


def test_reminder_due_before_a_close_under_the_older_policy() -> None:
    """The old policy's texts no longer hold; its close does."""
    talk = Talk(reminder={"minutes": 4, "texts": TEXTS})
    talk.say("user", "hi", at=0)
    talk.change_policy(at=20)

    assert [event.type for event in talk.events] == ["session.opened", "session.closed"]
    assert talk.closings == [("inactivity", 15)]


def test_change_to_lazy_and_back() -> None:
    """The deadline is always the one of the policy in force."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    talk.change_policy(closing="on_return", at=5)
    lazy = deadline(talk)
    talk.change_policy(at=20)

    assert lazy == 7 * DAY
    assert talk.closings == [("inactivity", 20)]


def test_requires_bot_follows_the_policy() -> None:
    """Whether a session counts is settled by the policy that it closes under."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    talk.change_policy(requires_bot=True, at=1)
    without = talk.open.counted
    talk.say("bot", "hello", at=2)
    with_bot = talk.open.counted
    talk.change_policy(requires_bot=True, inactivity_minutes=20, at=3)

    assert (without, with_bot, talk.open.counted) == (False, True, True)


def test_reminder_is_left_out_where_the_change_closes() -> None:
    """A deadline that the new policy puts at the very change leaves no time for it."""
    reminder = {"minutes": 4, "texts": TEXTS}
    talk = Talk(inactivity_minutes=60)
    talk.say("user", "hi", at=0)
    talk.change_policy(reminder=reminder, at=15)

    assert [event.type for event in talk.events] == ["session.opened", "session.closed"]
    assert talk.closings == [("inactivity", 15)]


def test_closing_has_no_say_where_silence_has_none() -> None:
    """Under `platform` a return after the silence continues, and typing is a sign of life like any."""
    for closing in ("on_return", "on_new_intent", "proactive"):
        talk = Talk(method="platform", closing=closing, abandon_after_hours=1)
        talk.say("user", "a", intent="x", at=0)
        typed = talk.say("user", type="activity", at=20)
        answer = talk.say("user", "b", intent="y", at=40)

        assert minute(typed.closes_at_ms) == 80
        assert answer.session == "continued"


def test_lazy_and_proactive_tell_by_the_policy_in_force() -> None:
    """A policy that turns lazy keeps what is open; one that turns proactive makes typing count again."""
    talk = Talk(closing="on_return", inactivity_minutes=15)
    talk.say("user", "a", at=0)
    talk.change_policy(inactivity_minutes=30, at=10)
    talk.say("user", type="activity", at=20)

    assert deadline(talk) == 50


@pytest.mark.parametrize(("to", "said_by_bot", "said_by_user"), (("interactive", False, True), ("all", True, True)))
def test_whom_a_closure_message_is_for(to: str, said_by_bot: bool, said_by_user: bool) -> None:  # noqa: FBT001 - a table
    """`interactive`: only sessions in which the user took part."""
    for role, expected in (("bot", said_by_bot), ("user", said_by_user)):
        talk = Talk(closure_message={"texts": {"default": "bye"}, "to": to})
        talk.say(role, "hello", at=0)
        talk.wake(at=15)

        assert ("session.closure_message" in [event.type for event in talk.events]) == expected


def test_an_intent_that_the_bot_gave_is_the_last_if_the_user_s_entry_had_none() -> None:
    """Ruling 9: the same intent after the silence continues."""
    talk = Talk(preset="kore-7.2")
    talk.say("user", "hm", at=0)
    talk.say("bot", "pay?", intent="pay", at=1)

    assert talk.say("user", "yes", intent="pay", at=20).session == "continued"


def test_a_user_comes_back_where_bots_start_nothing() -> None:
    """The policy is about the bots' own messages."""
    talk = Talk(closing="on_return", bot_starts=False)
    talk.say("user", "a", at=0)

    assert talk.say("user", "b", at=40).session == "opened"
    assert talk.closings == [("returned", 40)]
