"""Which entries start a session, by which row, and the session that they start."""

from typing import Any, get_args

import pytest

from app.domain.entry import EntryType
from app.domain.strand import event_id, opened_at_ms_of, session_id
from tests.domain.talk import NOON_MS, Talk, minute

STARTERS = {
    "message": "B04",
    "session.start": "B08",
    "conversation.started": "B09",
    "connect": "K13",
    "authorization": "K17",
    "agent.joined": "B03",
    "article.opened": "A11",
}


@pytest.mark.parametrize("kind", get_args(EntryType))
def test_what_starts_a_session_and_what_does_not(kind: str) -> None:
    """Entries that begin or say something start one; entries that end, change or follow something do not."""
    talk = Talk()

    answer = talk.say("user", type=kind)

    assert answer.session == ("opened" if kind in STARTERS else "none")
    assert [event.rule for event in talk.events] == ([STARTERS[kind]] if kind in STARTERS else [])


@pytest.mark.parametrize(("role", "rule"), (("user", "B04"), ("bot", "K15"), ("agent", "B03"), ("system", "K12")))
def test_a_message_of_any_role_starts_a_session(role: str, rule: str) -> None:
    """Each by its own row."""
    talk = Talk()

    answer = talk.say(role, "hello")

    assert (answer.session, answer.sequence) == ("opened", 1)
    assert talk.open.opening_rule == rule
    assert talk.emitted == [("session.opened", rule)]


def test_a_session_knows_how_it_began() -> None:
    """Id, user, channel, instant, entry and policy version."""
    talk = Talk()
    talk.say("user", "hi", user_id="bob", channel="sms", message_id="first", at=7)
    session = talk.open

    assert talk.strand is not None
    assert session.id == session_id(talk.strand, generation=1, opened_at_ms=NOON_MS + 7 * 60_000)
    assert opened_at_ms_of(session.id) == session.opened_at_ms == NOON_MS + 7 * 60_000
    assert (session.user_id, session.channel, session.opened_by) == ("bob", "sms", "first")
    assert (session.policy_version, session.previous_session_id) == (1, None)
    assert (session.trade, session.handed_off_at_ms) == ("bot", None)


def test_started_is_told_with_the_first_entry_counted() -> None:
    """The event's session is as the entry leaves it, even if the entry ends it as well."""
    talk = Talk()
    talk.say("user", "start over", type="session.end", refresh=True, language="en")

    assert [(event.type, event.session.entries, event.session.language) for event in talk.events] == [
        ("session.opened", 1, "en"),
        ("session.closed", 1, "en"),
    ]
    assert [event.session.closed_at_ms is None for event in talk.events] == [True, False]
    assert [event.at_ms for event in talk.events] == [NOON_MS, NOON_MS]


@pytest.mark.parametrize(
    ("fields", "rule"),
    (({"type": "session.start"}, "B08"), ({"type": "conversation.started"}, "B09"), ({"tags": ("vip", "new session")}, "B09")),
)
def test_a_start_signal_supersedes_by_its_row(fields: dict[str, Any], rule: str) -> None:
    """Both sides name the row; the next generation has another id and knows its predecessor."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    first = talk.open
    talk.say("bot", at=0, **fields)
    second = talk.open

    assert talk.emitted[1:] == [("session.closed", rule), ("session.opened", rule)]
    assert talk.closed[0].closed_by is None
    assert second.id != first.id
    assert second.previous_session_id == first.id


def test_new_session_is_asked_for_by_messages_alone() -> None:
    """The tag on any other entry is a tag like any."""
    talk = Talk()
    talk.say("user", "hi", at=0)

    answer = talk.say("bot", type="activity", tags=("new session",), at=1)

    assert answer.session == "continued"


def test_refresh_opens_where_none_is_open_and_whatever_its_type() -> None:
    """Any entry may ask for it, even one that would start nothing."""
    talk = Talk()

    answer = talk.say("user", type="activity", refresh=True)

    assert answer.session == "opened"
    assert talk.emitted == [("session.opened", "K22")]


def test_an_entry_may_end_one_session_and_its_own() -> None:
    """The answer names both, in order."""
    talk = Talk()
    first = talk.say("user", "hi", at=0)
    answer = talk.say("bot", type="session.end", refresh=True, at=1)

    assert [(ended.session_id, ended.reason) for ended in answer.closed] == [
        (first.session_id, "refresh"),
        (answer.session_id, "ended"),
    ]
    assert talk.closings == [("refresh", 1), ("ended", 1)]


def test_typing_that_refreshes_starts_the_clocks() -> None:
    """Also where typing alone would not restart them."""
    talk = Talk(closing="on_return", abandon_after_hours=1)
    answer = talk.say("user", type="activity", refresh=True, at=0)

    assert minute(answer.closes_at_ms) == 60


def test_refresh_of_a_relay_does_nothing() -> None:
    """A relayed reminder opens nothing, also if it refreshes or signals a start."""
    talk = Talk(reminder={"minutes": 4, "texts": {"default": "there?"}})
    talk.say("user", "hi", at=0)
    talk.wake(at=11)

    within = talk.say("bot", "there?", refresh=True, at=12)
    again = talk.say("bot", type="session.start", in_reply_to=event_id(talk.events[-1]), at=13)

    assert [within.session, again.session] == ["continued", "continued"]


def test_the_previous_session_is_known_beyond_its_fifteen_minutes() -> None:
    """As long as the conversation's state lives."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    first = talk.open.id
    talk.wake(at=15)
    talk.say("user", "hi again", at=60)

    assert talk.open.previous_session_id == first
    assert talk.state.recent == ()


def test_time_of_a_strand_never_goes_back() -> None:
    """A clock that is behind decides at the instant that the strand has already seen."""
    talk = Talk()
    talk.say("user", "hi", at=10)
    answer = talk.say("bot", "hello", at=3)

    assert minute(answer.received_at_ms) == 10
    assert minute(talk.state.touched_at_ms) == 10


def test_a_user_starts_anew_where_bots_start_nothing() -> None:
    """The policy is about the bots' own messages."""
    talk = Talk(bot_starts=False)
    talk.say("user", "a", at=0)
    talk.say("user", type="conversation.started", at=1)

    assert talk.closings == [("superseded", 1)]


def test_a_message_that_acts_as_a_start_may_start_where_messages_do_not() -> None:
    """By the kind that its tag names."""
    talk = Talk(starts_with=["conversation.started"])

    assert talk.say("user", "a", at=0).session == "none"
    assert talk.say("user", "a", tags=["new session"], at=1).session == "opened"
