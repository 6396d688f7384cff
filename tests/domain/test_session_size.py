"""A session has a quota of entries and of bytes: the entry that it has no room for belongs to the conversation's next session."""

import pytest
from msgspec import structs

from app.domain import transcript
from app.domain.records import Ended, SessionQuota
from app.domain.session_view import explain
from app.domain.strand import Strand
from tests.domain.talk import Talk, entry_of

HI_BYTES = len(b'{"user_id":"ann","role":"user","text":"hi"}')


def talk_within(entries: int = 0, size_bytes: int = 0, policy: dict[str, object] | None = None) -> Talk:
    talk = Talk(**(policy or {}))
    talk.bot = structs.replace(talk.bot, quota=SessionQuota(entries, size_bytes))
    return talk


def sizes(talk: Talk) -> list[int]:
    """Entries of each session, the closed ones first."""
    return [session.entries for session in [*talk.closed, *([talk.state.session] if talk.state.session else [])]]


def test_the_size_of_an_entry_is_that_of_its_json() -> None:
    """Without the fields that were left out."""
    assert transcript.size_of(entry_of("user", "hi")) == HI_BYTES
    assert transcript.size_of(entry_of("user", "é")) == HI_BYTES


@pytest.mark.parametrize(
    ("entries", "size_bytes", "expected"),
    (
        (3, 0, [3, 3, 1]),
        (1, 0, [1] * 7),
        (0, 3 * HI_BYTES, [3, 3, 1]),
        (0, 3 * HI_BYTES - 1, [2, 2, 2, 1]),
        (0, 1, [1] * 7),
        (2, 3 * HI_BYTES, [2, 2, 2, 1]),
        (0, 0, [7]),
        (7, 7 * HI_BYTES, [7]),
    ),
)
def test_a_session_ends_with_the_entry_after_its_quota(entries: int, size_bytes: int, expected: list[int]) -> None:
    """It may have exactly as much as its quota; what comes next opens the next session. Nothing is left out."""
    talk = talk_within(entries, size_bytes)
    for _ in range(7):
        talk.say("user", "hi")

    assert sizes(talk) == expected
    assert [session.reason for session in talk.closed] == ["max_size"] * (len(expected) - 1)
    assert len(talk.messages) == 7


def test_an_entry_larger_than_the_quota_has_a_session_of_its_own() -> None:
    """It is stored whole; the one before it and the one after it are in others."""
    talk = talk_within(size_bytes=100)
    for text in ("hi", "x" * 1_000, "hi", "hi"):
        talk.say("user", text)

    assert sizes(talk) == [1, 1, 2]
    assert talk.messages[1][1].text == "x" * 1_000


def test_the_next_session_opens_where_the_full_one_closes() -> None:
    """At once, in the same conversation, and the entry is answered with both."""
    talk = talk_within(2)
    first = talk.say("user", "hi", at=0)
    talk.say("bot", "hello", at=1)
    third = talk.say("bot", "more", at=2)

    closed, opened = talk.closed[0], talk.open
    assert (third.session, third.sequence, third.closed) == ("opened", 1, (Ended(first.session_id or "", "max_size"),))
    assert talk.closings == [("max_size", 2)]
    assert (closed.closing_rule, closed.outcome, closed.contained) == ("max_size", "completed", True)
    assert (opened.opening_rule, opened.previous_session_id, opened.opened_at_ms) == ("max_size", closed.id, closed.closed_at_ms)
    assert talk.emitted[-2:] == [("session.closed", "max_size"), ("session.opened", "max_size")]
    assert "the quota of a session's entries or bytes was reached (max_size)" in " ".join(
        explain(Strand("shop", "web:ann"), closed)["words"]
    )


@pytest.mark.parametrize(
    ("policy", "role", "kind"),
    (
        ({}, "user", "activity"),
        ({}, "system", "survey.sent"),
        ({"bot_starts": False}, "bot", "message"),
        ({"method": "client"}, "user", "message"),
        ({"method": "platform"}, "bot", "message"),
        ({"starts_with": ["session.start"], "method": "platform"}, "user", "message"),
    ),
)
def test_any_entry_goes_on_in_the_next_session(policy: dict[str, object], role: str, kind: str) -> None:
    """The conversation goes on: an entry that could start no session opens the next one, too, and none is late."""
    talk = talk_within(1, policy=policy)
    first = talk.say("user", type="session.start", client_session_id="s")
    answer = talk.say(role, type=kind, client_session_id="s")

    assert (first.session, answer.session, talk.closings) == ("opened", "opened", [("max_size", 0)])


def test_an_entry_that_ends_the_session_anyway_says_why() -> None:
    """Its own reason goes before the quota, which concerns an entry that would join the session."""
    talk = talk_within(1)
    talk.say("user", "hi")
    talk.say("user", "again", refresh=True)
    talk.say("system", type="session.start")

    assert [session.reason for session in talk.closed] == ["refresh", "superseded"]


def test_an_end_signal_that_has_no_room_ends_the_next_session() -> None:
    """The one entry of it."""
    talk = talk_within(1)
    talk.say("user", "hi")
    talk.say("bot", type="session.end")

    assert [session.reason for session in talk.closed] == ["max_size", "ended"]


def test_a_message_by_an_agent_joins_the_next_session() -> None:
    """In the full session the agent was there; in the next one the message counts as `agent.joined`."""
    talk = talk_within(2, policy={"on_handoff": "split"})
    talk.say("agent", type="agent.joined")
    talk.say("agent", "hello")
    talk.say("agent", "more")

    assert [session.reason for session in talk.closed] == ["max_size"]
    assert (talk.open.trade, talk.open.agent_present) == ("agent", True)


def test_late_entries_are_outside_the_quota() -> None:
    """They are kept with the closed session, and open none."""
    talk = talk_within(1)
    talk.say("user", "hi")
    talk.close(at=1)
    for _ in range(3):
        talk.say("system", type="survey.sent", at=2)

    assert (talk.closed[0].entries, talk.state.last and talk.state.last.late_entries, talk.state.session) == (1, 3, None)


def test_a_smaller_quota_holds_for_open_sessions() -> None:
    """A change ends no session by itself; the next entry finds no room."""
    talk = talk_within(10)
    for _ in range(4):
        talk.say("user", "hi")
    talk.bot = structs.replace(talk.bot, quota=SessionQuota(2, 0))
    talk.wake(at=1)
    assert talk.closed == []

    talk.say("user", "hi", at=2)

    assert sizes(talk) == [4, 1]
