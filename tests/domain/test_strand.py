"""Strands: which entry belongs to which, and the ids made from them."""

from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.domain.errors import InvalidEntry
from app.domain.policy.model import PolicyVersion
from app.domain.policy.parse import policy_from
from app.domain.records import Event, EventType, Session
from app.domain.strand import (
    LONGEST_CONVERSATION,
    Strand,
    conversation_hash,
    conversation_hash_of,
    event_id,
    event_name,
    opened_at_ms_of,
    session_id,
    strand_of,
)
from tests.domain.talk import NOON_MS, entry_of

ANY = PolicyVersion(1, 0, policy_from({}))
CLIENT = PolicyVersion(1, 0, policy_from({"method": "client"}))


@pytest.mark.parametrize(
    ("fields", "strand"),
    (
        ({}, Strand("shop", "web:ann")),
        ({"channel": "sms"}, Strand("shop", "sms:ann")),
        ({"window_id": "w"}, Strand("shop", "web:ann")),
        ({"client_session_id": "s"}, Strand("shop", "web:ann")),
        ({"conversation_id": "c"}, Strand("shop", "c")),
        ({"channel": "sms", "conversation_id": "c"}, Strand("shop", "c", "sms")),
        ({"channel": "sms", "conversation_id": "sms:ann"}, Strand("shop", "sms:ann")),
        ({"channel": "sms", "conversation_id": "sms:bob"}, Strand("shop", "sms:bob", "sms")),
        ({"channel": "help"}, Strand("shop", "help:ann")),
        ({"channel": "help", "window_id": "w"}, Strand("shop", "help:ann:w", "w")),
        ({"channel": "help", "window_id": "w", "user_id": "a:b%"}, Strand("shop", "help:a%3Ab%25:w", "w")),
        ({"channel": "help", "window_id": "w", "conversation_id": "c"}, Strand("shop", "c", "help:w")),
    ),
)
def test_strand_of_an_entry(fields: dict[str, Any], strand: Strand) -> None:
    """Channel and user, or as the bot names it; on `help` each window has its own; and each channel of a named one."""
    assert strand_of("shop", entry_of("user", **fields), ANY) == strand


def test_strand_of_a_client_session() -> None:
    """Each is a strand of its own; an entry that names none is refused, where the channel's method is `client`."""
    named = entry_of("user", client_session_id="s", channel="help", window_id="w")
    elsewhere = entry_of("user", client_session_id="s", channel="sms", conversation_id="c")
    nameless = entry_of("user", channel="sms")
    on_sms = PolicyVersion(1, 0, policy_from({"channels": {"sms": {"method": "client"}}}))

    assert strand_of("shop", named, CLIENT) == Strand("shop", "help:ann:w", "s")
    assert strand_of("shop", elsewhere, CLIENT) == Strand("shop", "c", "sms:s")
    assert strand_of("shop", entry_of("user"), on_sms).thread == ""
    for policy in (CLIENT, on_sms):
        with pytest.raises(InvalidEntry) as refused:
            strand_of("shop", nameless, policy)
        assert refused.value.field == "client_session_id"
        assert refused.value.message == "it is required: the policy's method is `client`, so every entry names its session"
        assert refused.value.hint == "send client_session_id, or choose the method `inactivity` or `platform`"


IDS = st.text(st.sampled_from("ab:%3A"), min_size=1, max_size=4)
WINDOWS = st.none() | IDS
CHANNELS = st.sampled_from(["web", "help"])


@given(a=st.tuples(IDS, CHANNELS, WINDOWS), b=st.tuples(IDS, CHANNELS, WINDOWS))
def test_default_conversations_are_never_shared(a: tuple[str, str, str | None], b: tuple[str, str, str | None]) -> None:
    """Two users, channels or windows never end up in one, whatever their ids hold."""
    assume(a != b)
    strands = [
        strand_of("shop", entry_of("user", user_id=user, channel=channel, window_id=window), ANY)
        for user, channel, window in (a, b)
    ]

    same = a[:2] == b[:2] and a[1] == "web"
    assert (strands[0].conversation == strands[1].conversation) == same


def test_session_id_is_a_uuid7_that_tells_when_and_where() -> None:
    """The same decision gives the same id; another generation, thread, conversation or bot gives another."""
    strand = Strand("shop", "web:ann")
    made = session_id(strand, generation=1, opened_at_ms=NOON_MS)

    assert made == session_id(Strand("shop", "web:ann"), generation=1, opened_at_ms=NOON_MS)
    assert (made[14], made[19] in "89ab") == ("7", True)
    assert opened_at_ms_of(made) == NOON_MS
    assert conversation_hash_of(made) == conversation_hash("shop", "web:ann")
    others = (Strand("shop", "web:ann", "t"), Strand("shop", "web:bob"), Strand("shoq", "web:ann"))
    ids = {made, session_id(strand, generation=2, opened_at_ms=NOON_MS)}
    ids |= {session_id(other, generation=1, opened_at_ms=NOON_MS) for other in others}
    assert len(ids) == 5
    assert made == "01a1fdfa-4600-7dff-8007-b98ca63b51ae"


def test_session_ids_of_a_strand_are_in_order() -> None:
    """Also where many open in one millisecond, and after 4,096 of them in the next."""
    strand = Strand("shop", "web:ann")
    ids = [session_id(strand, generation=generation, opened_at_ms=NOON_MS) for generation in range(1, 4096)]
    later = session_id(strand, generation=4096, opened_at_ms=NOON_MS + 1)

    assert sorted(ids) == ids
    assert ids[-1] < later
    assert len(set(ids)) == 4095


@given(st.text(max_size=10), st.text(max_size=10))
def test_conversation_hash_fits(bot: str, conversation: str) -> None:
    assert 0 <= conversation_hash(bot, conversation) < 4096


@pytest.mark.parametrize("fields", ({"channel": "c" * 64}, {"channel": "help", "window_id": "w" * 256}))
def test_longest_conversation(fields: dict[str, Any]) -> None:
    """The longest name that can be asked for is that of the longest default conversation."""
    longest = strand_of("shop", entry_of("user", user_id=":" * 256, **fields), ANY).conversation

    assert len(longest) <= LONGEST_CONVERSATION
    assert fields["channel"] != "help" or len(longest) == LONGEST_CONVERSATION


@pytest.mark.parametrize("generation", (1, 4_095, 4_096, 8_191, 8_192, 10**6))
def test_session_id_is_well_formed_in_any_generation(generation: int) -> None:
    """Version, variant, instant and place stay where they belong, however many sessions a strand has had."""
    made = session_id(Strand("shop", "web:ann"), generation=generation, opened_at_ms=NOON_MS)

    assert (made[14], made[19] in "89ab") == ("7", True)
    assert opened_at_ms_of(made) == NOON_MS
    assert conversation_hash_of(made) == conversation_hash("shop", "web:ann")


@pytest.mark.parametrize(
    ("kind", "name"),
    (
        ("session.opened", "s-1/session.opened"),
        ("session.closed", "s-1/session.closed"),
        ("session.reminder", "s-1/session.reminder/1795262400000"),
        ("session.updated", "s-1/session.updated/3"),
    ),
)
def test_names_of_events_stay_as_they_are(kind: EventType, name: str) -> None:
    """A delivery's id and the id in `in_reply_to` are made of it: with another name what was sent would be sent again."""
    event = Event(kind, Session("s-1", "ann", "web", NOON_MS, late_entries=3), NOON_MS, "K07")

    assert event_name(event) == name
    assert event_id(event) == str(uuid5(UUID("0d9d5c1e-5a53-4c8f-9d0e-6e2f6a1f7c11"), name))
