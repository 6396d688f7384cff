"""A session opens, goes on and ends: the main road, under the default policy."""

from typing import Any

import pytest

from app.domain.records import Answer, Ended, SetVariable
from app.domain.strand import event_id
from tests.domain.talk import NOON_MS, Talk

MS = 1 / 60_000


def test_first_message_opens_and_next_continues() -> None:
    """One session, numbered from 1, whose deadline moves with each entry."""
    talk = Talk()

    first = talk.say("user", "hi", at=0)
    second = talk.say("bot", "hello", at=1)

    assert (first.session, first.sequence) == ("opened", 1)
    assert (second.session, second.sequence, second.session_id) == ("continued", 2, first.session_id)
    assert second.closes_at_ms == talk.open.last_entry_at_ms + 15 * 60_000
    assert talk.emitted == [("session.opened", "B04")]


def test_silence_closes_at_the_deadline_whoever_notices_first() -> None:
    """The sweeper at once, the sweeper late, or the next entry: `closed_at` is the deadline."""
    for late in (15, 15.001, 60):
        swept, met = Talk(), Talk()
        for talk in (swept, met):
            talk.say("user", "hi", at=0)

        swept.wake(at=late)
        answer = met.say("user", "again", at=late)

        assert swept.closings == met.closings == [("inactivity", 15)]
        assert answer.session == "opened"
        assert answer.closed == ()


def test_just_before_the_deadline_is_in_time() -> None:
    """One millisecond earlier the same session goes on."""
    talk = Talk()
    talk.say("user", "hi", at=0)

    answer = talk.say("user", "again", at=15 - 1 / 60_000)

    assert answer.session == "continued"
    assert talk.closed == []


def test_start_signal_supersedes() -> None:
    """The open session ends where the new one begins, and the entry belongs to the new one."""
    for fields in ({"type": "session.start"}, {"type": "conversation.started"}, {"tags": ("new session",)}):
        talk = Talk()
        first = talk.say("user", "hi", at=0)
        second = talk.say("bot", at=3, **fields)

        assert second.session == "opened"
        assert second.sequence == 1
        assert second.closed == (Ended(first.session_id or "", "superseded"),)
        assert talk.closings == [("superseded", 3)]
        assert talk.open.previous_session_id == first.session_id


def test_end_signals_close_the_session_that_they_belong_to() -> None:
    """The entry is the session's last, and nothing is open after it."""
    for kind, reason in (("session.end", "ended"), ("conversation.ended", "ended"), ("chat.closed", "chat_closed")):
        talk = Talk()
        talk.say("user", "hi", at=0)
        answer = talk.say("bot", type=kind, at=2)

        assert (answer.session, answer.sequence, answer.closes_at_ms) == ("continued", 2, None)
        assert [ended.reason for ended in answer.closed] == [reason]
        assert talk.closings == [(reason, 2)]
        assert talk.state.session is None


def test_what_starts_nothing_belongs_to_no_session() -> None:
    """Without an open session some entries are answered with `none` and leave no trace."""
    for kind in ("activity", "search", "session.end", "conversation.ended", "chat.closed"):
        talk = Talk()
        answer = talk.say("user", type=kind, at=1)

        assert answer == Answer(None, "none", 0, None, NOON_MS + 60_000)
        assert talk.messages == []
        assert talk.events == []
        assert talk.state == Talk().state


def test_relay_of_a_closure_message_opens_nothing() -> None:
    """Ruling 6: it is named within a day, or its text comes within 10 minutes; in an open session it is an entry."""
    talk = Talk(closure_message={"texts": {"default": "bye {user_id}"}})
    talk.say("user", "hi", at=0)
    named = {"in_reply_to": event_id(talk.wake(at=15).events[0])}
    found = [
        talk.say("bot", "bye ann ", at=25).session,
        talk.say("bot", "well", at=26, **named).session,
        talk.say("bot", "bye ann", at=26).session,
        talk.say("bot", "well", at=27, **named).session,
    ]

    assert found == ["late", "late", "opened", "continued"]


def test_relay_by_its_id_is_recognised_for_a_day() -> None:
    """Also if nothing happened in between."""
    for at, expected in ((12 + 24 * 60 - MS, "late"), (12 + 24 * 60, "opened")):
        talk = Talk(reminder={"minutes": 3, "texts": {"default": "there?"}})
        talk.say("user", "hi", at=0)
        named = {"in_reply_to": event_id(talk.wake(at=12).events[0])}

        assert talk.say("bot", "there?", at=at, **named).session == expected


@pytest.mark.parametrize(
    ("role", "fields"),
    (
        ("user", {}),
        ("agent", {}),
        ("system", {}),
        ("bot", {"type": "authorization"}),
        ("bot", {"text": "hello"}),
    ),
)
def test_only_a_bots_relay_is_one(role: str, fields: dict[str, Any]) -> None:
    """A user who answers the closure message opens a session (ruling 3); `in_reply_to` naming anything else changes nothing."""
    talk = Talk(closure_message={"texts": {"default": "bye"}})
    talk.say("user", "hi", at=0)
    talk.wake(at=15)

    assert talk.say(role, at=16, **({"text": "bye", "in_reply_to": "m1"} | fields)).session == "opened"


def test_giving_authorization_details_is_no_relay() -> None:
    """K17: it is by the user, also where it names the closure message."""
    talk = Talk(closure_message={"texts": {"default": "bye"}})
    talk.say("user", "hi", at=0)
    named = {"in_reply_to": event_id(talk.wake(at=15).events[0])}

    assert talk.say("bot", type="authorization", at=16, **named).session == "opened"


def test_refresh_closes_and_opens() -> None:
    """The refreshing entry is the first of the new session."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    answer = talk.say("user", "start over", refresh=True, at=1)

    assert (answer.session, answer.sequence) == ("opened", 1)
    assert talk.closings == [("refresh", 1)]


def test_closure_message_goes_before_the_close() -> None:
    """Both at the deadline, in one decision, the words in the user's language."""
    talk = Talk(closure_message={"texts": {"default": "Bye {user_id}", "pt": "Tchau depois de {minutes}, {bot}"}})
    talk.say("user", "oi", language="pt-BR", at=0)
    decision = talk.wake(at=20)

    assert [(event.type, event.rule) for event in decision.events] == [
        ("session.closure_message", "K09"),
        ("session.closed", "K07"),
    ]
    assert {event.at_ms for event in decision.events} == {talk.closed[0].closed_at_ms}
    assert decision.events[0].data == {"language": "pt", "text": "Tchau depois de 15, shop"}


def test_close_by_api() -> None:
    """The open session closes now; one that is not open is left alone."""
    talk = Talk()
    talk.say("user", "hi", at=0)
    session = talk.open
    decision = talk.close(at=4)

    assert talk.closings == [("api", 4)]
    assert decision.answer == Answer(session.id, "none", 0, None, NOON_MS + 4 * 60_000, (Ended(session.id, "api"),))


def test_a_discard_leaves_no_empty_dialog() -> None:
    """Nothing of it is stored where it had no tags."""
    talk = Talk(discard_closes=True)
    talk.say("user", "a", context={"topic": "shoes"}, at=0)
    talk.say("user", type="discard", at=1)

    assert talk.closings == [("discard", 1)]
    assert talk.state.dialog is None


def test_a_day_later_nothing_of_a_close_is_kept() -> None:
    """Neither the session, for late entries, nor its closure message, for relays; a moment before, both are."""
    talk = Talk(closure_message={"texts": {"default": "bye"}})
    talk.say("user", "a", at=0)
    talk.wake(at=15)
    talk.do(SetVariable("a", 1), at=15 + 24 * 60 - MS)

    before = talk.state
    talk.do(SetVariable("a", 2), at=15 + 24 * 60)
    after = talk.state

    assert before.last is not None
    assert len(before.announced) == 1
    assert after.last is None
    assert after.announced == ()
