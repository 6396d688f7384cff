"""Entries that a session collected after it was archived become a session of their own."""

from app.domain.policy.model import PolicyVersion
from app.domain.policy.parse import policy_from
from app.domain.rules.counting import continuation, continued
from app.domain.strand import Strand, opened_at_ms_of, session_id
from tests.domain.talk import Talk, minute

POLICY = PolicyVersion(1, 0, policy_from({}))


def talked() -> Talk:
    """Six entries, of which the archive has the first two; closed by the user."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.say("bot", "b", at=1)
    talk.say("user", "c", intent="pay", language="pt", tags=["vip"], at=2)
    talk.say("bot", "d", at=3)
    talk.say("user", "e", developer=True, at=4)
    talk.say("user", type="chat.closed", at=5)
    return talk


def test_surplus_is_a_session_of_its_own() -> None:
    """Its entries numbered anew and counted; opened with the first of them, closed as the session that it continues."""
    talk = talked()
    strand, closed = Strand("shop", "web:ann"), talk.closed[0]
    surplus = [message for _, message in talk.messages[2:5]]
    made, kept = continuation(strand, closed, surplus, POLICY)

    assert (made.previous_session_id, made.opening_rule, made.opened_by) == (closed.id, "rollback", "m3")
    assert (minute(made.opened_at_ms), minute(made.closed_at_ms), minute(made.last_entry_at_ms)) == (2, 5, 4)
    assert (made.user_id, made.channel, made.policy_version) == ("ann", "web", 1)
    assert (made.reason, made.closing_rule, made.closed_by) == ("chat_closed", "A04", "m6")
    assert (made.trade, made.outcome, made.contained) == ("bot", "completed", True)
    assert (made.entries, made.user_entries, made.bot_entries, made.interactions) == (3, 2, 1, 3)
    assert (made.intent, made.language, made.tags) == ("pay", "pt", ("vip",))
    assert (made.interactive, made.developer, made.billing_sessions) == (True, True, 0)
    assert made.first_response_ms == 60_000
    assert [(message.sequence, message.message_id) for message in kept] == [(1, "m3"), (2, "m4"), (3, "m5")]


def test_continuation_asked_for_twice_is_the_same() -> None:
    """Its id is made of the session and of the first message; it carries its own opening, and is not the session's."""
    talk = talked()
    strand, closed = Strand("shop", "web:ann"), talk.closed[0]
    surplus = [message for _, message in talk.messages[2:]]
    first, again = (continuation(strand, closed, surplus, POLICY) for _ in range(2))
    later, _ = continuation(strand, closed, surplus[1:], POLICY)

    assert first == again
    assert minute(opened_at_ms_of(first[0].id)) == 2
    assert len({closed.id, first[0].id, later.id}) == 3
    thread = Strand("shop", "web:ann", f"\x1f{closed.id}")
    assert first[0].id == session_id(thread, generation=3, opened_at_ms=first[0].opened_at_ms)
    assert first[0].billing_sessions == 0


def test_continuation_without_a_developer_is_billed() -> None:
    talk = talked()
    made, _ = continuation(Strand("shop", "web:ann"), talk.closed[0], [talk.messages[2][1]], POLICY)

    assert (made.developer, made.billing_sessions) == (False, 1)


def test_continuation_is_told_at_its_close() -> None:
    talk = talked()
    made, _ = continuation(Strand("shop", "web:ann"), talk.closed[0], [talk.messages[2][1]], POLICY)
    event = continued(made)

    assert (event.type, event.rule, event.session, minute(event.at_ms)) == ("session.continuation", "rollback", made, 5)


def test_continuation_is_billed_by_the_policy_of_its_channel() -> None:
    policy = PolicyVersion(1, 0, policy_from({"channels": {"web": {"billing_block_minutes": 1}}}))
    talk = Talk()
    for at in range(4):
        talk.say("user", "a", at=at)
    talk.say("user", type="chat.closed", at=4)
    made, _ = continuation(Strand("shop", "web:ann"), talk.closed[0], [message for _, message in talk.messages[1:4]], policy)

    assert made.billing_sessions == 3


def test_continuation_keeps_the_trade() -> None:
    """The trade is that of the session before."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.say("agent", "b", at=1)
    talk.say("user", "c", at=2)
    talk.say("user", type="chat.closed", at=3)
    made, _ = continuation(Strand("shop", "web:ann"), talk.closed[0], [talk.messages[2][1]], POLICY)

    assert (made.trade, made.outcome, made.contained) == ("agent", "handed_off", False)
