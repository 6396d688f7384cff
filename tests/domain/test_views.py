"""Sessions and explanations as JSON."""

from typing import Annotated, Any, ClassVar

import pytest
from msgspec import NODEFAULT, Meta, Struct, json, structs

from app.domain.records import Answer, Close, Dialog, Message, Session, State
from app.domain.rules.ending import after_discard
from app.domain.session_view import (
    context_view,
    description,
    explain,
    first_messages,
    message_size,
    public_fields,
    session_view,
    shown_as,
)
from app.domain.strand import Strand
from tests.domain.talk import NOON_MS, Talk

NOON = "2026-11-21T12:00:00.000Z"


def unset() -> dict[str, Any]:
    """The public fields that an entry need not set, with the value of a session of which nothing set them."""
    defaults = {field.name: field.default for field in structs.fields(Session)}
    return {shown_as(name): defaults[name] for name in public_fields(Session) if defaults.get(name, NODEFAULT) is not NODEFAULT}


def test_session_as_json() -> None:
    """Every field, by its name; an open one says when it would close."""
    talk = Talk(closing="on_return", abandon_after_hours=2, reminder={"minutes": 1, "texts": {"default": "x"}})
    talk.say("user", "a", language="pt", intent="pay", tags=["vip"], at=0)
    talk.say("bot", "b", at=1)
    assert talk.strand is not None
    view = session_view(talk.strand, talk.open)

    assert view == unset() | {
        "id": talk.open.id,
        "bot": "shop",
        "conversation_id": "web:ann",
        "thread": None,
        "user_id": "ann",
        "channel": "web",
        "status": "open",
        "opened_at": "2026-11-21T12:00:00.000Z",
        "opened_by": "m1",
        "opening_rule": "B04",
        "previous_session_id": None,
        "closes_at": "2026-11-21T14:01:00.000Z",
        "closed_at": None,
        "reason": None,
        "closing_rule": None,
        "closed_by": None,
        "policy_version": 1,
        "interactive": True,
        "developer": False,
        "counted": True,
        "trade": "bot",
        "outcome": None,
        "contained": None,
        "language": "pt",
        "intent": "pay",
        "intents": ["pay"],
        "tags": ["vip"],
        "entries": 2,
        "late_entries": 0,
        "entries_of": {"user": 1, "bot": 1, "agent": 0, "system": 0},
        "interactions": 2,
        "billing_sessions": 1,
        "last_entry_at": "2026-11-21T12:01:00.000Z",
        "first_entry_at_of": {
            "user": "2026-11-21T12:00:00.000Z",
            "bot": "2026-11-21T12:01:00.000Z",
            "agent": None,
            "system": None,
        },
        "last_entry_at_of": {
            "user": "2026-11-21T12:00:00.000Z",
            "bot": "2026-11-21T12:01:00.000Z",
            "agent": None,
            "system": None,
        },
        "first_response_ms": 60_000,
        "active_ms": 60_000,
        "idle_ms": None,
        "handed_off_at": None,
        "escalated_at": None,
        "resolved_at": None,
        "survey_sent_at": None,
        "survey_answered_at": None,
        "reminded_at": None,
        "session_metadata": None,
    }
    assert json.decode(json.encode(view)) == view


def test_closed_session_as_json() -> None:
    """The same fields, with the end, and each instant at its name."""
    talk = Talk(
        on_survey_answered="end", on_resolved="continue", reminder={"minutes": 1, "texts": {"default": "x"}}, method="inactivity"
    )
    talk.say("user", "a", channel="help", window_id="w", at=0)
    for at, kind in enumerate(("escalated", "resolved", "handoff", "survey.sent", "survey.answered"), start=15):
        talk.wake(at=at - 0.5)
        talk.say("bot", type=kind, channel="help", window_id="w", at=at - 0.5)
    assert talk.strand is not None
    view = session_view(talk.strand, talk.closed[0])

    assert (view["thread"], view["status"], view["closes_at"]) == ("w", "closed", None)
    assert (view["closed_at"], view["reason"], view["closing_rule"]) == ("2026-11-21T12:18:30.000Z", "survey_answered", "A08")
    assert {
        name: view[name][14:19] for name in view if name.endswith("_at") and name not in {"opened_at", "closed_at", "closes_at"}
    } == {
        "last_entry_at": "18:30",
        "escalated_at": "14:30",
        "resolved_at": "15:30",
        "handed_off_at": "16:30",
        "survey_sent_at": "17:30",
        "survey_answered_at": "18:30",
        "reminded_at": "14:00",
    }


def explained(talk: Talk, messages: list[Message] | None = None) -> dict[str, Any]:
    assert talk.strand is not None
    return explain(talk.strand, talk.state.session or talk.closed[-1], messages or [])


def test_open_session_explained() -> None:
    """The entry that opened it, the one that moved its deadline, the policy; in words and as data."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.say("bot", "b", at=1)
    found = explained(talk, [message for _, message in talk.messages])

    assert found["data"] == {
        "session_id": talk.open.id,
        "bot": "shop",
        "conversation_id": "web:ann",
        "status": "open",
        "policy_version": 1,
        "previous_session_id": None,
        "opened": {
            "at": "2026-11-21T12:00:00.000Z",
            "rule": "B04",
            "because": "the user said something",
            "message_id": "m1",
            "role": "user",
            "type": "message",
        },
        "deadline": {
            "at": "2026-11-21T12:16:00.000Z",
            "rule": "K07",
            "because": "nothing came for as long as the policy says",
            "message_id": "m2",
            "role": "bot",
            "type": "message",
            "reason": "inactivity",
        },
        "reminded_at": None,
        "closed": None,
        "late_entries": 0,
    }
    assert found["words"] == [
        "It opened at 2026-11-21T12:00:00.000Z with entry m1 (message by user): the user said something (B04).",
        (
            "Its deadline is 2026-11-21T12:16:00.000Z, set last by entry m2 (message by bot) under policy version 1: "
            "then it closes as `inactivity` (K07)."
        ),
        "It is open.",
    ]


def test_closed_session_explained() -> None:
    """By an entry, without the transcript at hand."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.say("user", type="chat.closed", at=1)
    found = explained(talk)

    assert found["data"]["status"] == "closed"
    assert found["data"]["closed"] == {
        "at": "2026-11-21T12:01:00.000Z",
        "rule": "A04",
        "because": "the user closed the window",
        "message_id": "m2",
        "role": None,
        "type": None,
        "reason": "chat_closed",
        "key": None,
    }
    assert found["words"][-1] == (
        "It closed at 2026-11-21T12:01:00.000Z as `chat_closed` with entry m2: "
        "the user closed the window (A04), under policy version 1."
    )


def test_close_by_key_and_late_entries_explained() -> None:
    """The key's name is no message's id; entries that came after the end are counted."""
    talk = Talk()
    talk.say("user", "a", at=0)
    talk.do(Close(talk.open.id, closed_by="night shift"), at=1)
    talk.say("user", type="survey.answered", at=2)
    talk.say("bot", type="resolved", at=3)
    assert talk.strand is not None
    assert talk.state.last is not None
    found = explain(talk.strand, talk.state.last)

    assert (found["data"]["closed"]["key"], found["data"]["closed"]["message_id"]) == ("night shift", None)
    assert found["data"]["late_entries"] == 2
    assert found["words"][-2:] == [
        (
            "It closed at 2026-11-21T12:01:00.000Z as `api` with the API key 'night shift': "
            "it was asked to close (K20), under policy version 1."
        ),
        "Late entries came after that: 2. They reopened nothing.",
    ]


def test_close_by_time_after_a_change_explained() -> None:
    """No entry closed it, and a policy moved its deadline; the reminder is named."""
    talk = Talk(reminder={"minutes": 1, "texts": {"default": "x"}})
    talk.say("user", "a", at=0)
    talk.change_policy(inactivity_minutes=20, reminder={"minutes": 1, "texts": {"default": "x"}}, at=1)
    talk.wake(at=20)
    found = explained(talk)

    assert found["data"]["deadline"]["message_id"] is None
    assert found["words"][1:] == [
        (
            "Its deadline was 2026-11-21T12:20:00.000Z, set last by a change of the policy under policy version 2: "
            "then it would close as `inactivity` (K07)."
        ),
        "The user was reminded at 2026-11-21T12:19:00.000Z.",
        (
            "It closed at 2026-11-21T12:20:00.000Z as `inactivity`: "
            "nothing came for as long as the policy says (K07), under policy version 2."
        ),
    ]


def test_paused_session_explained() -> None:
    talk = Talk(on_handoff="pause")
    talk.say("user", "a", at=0)
    talk.say("bot", type="handoff", at=1)

    assert explained(talk)["words"][2].startswith("It is paused: it was handed to a human")


def test_rule_without_words_has_its_name() -> None:
    """A session may have been written by another version."""
    found = explain(Strand("shop", "c"), Session("s", "ann", "web", NOON_MS, opened_by="m1", opening_rule="Z99"))

    assert found["data"]["opened"]["because"] == "Z99"


def sized(*sequences: int) -> list[Message]:
    """Messages with a text of 1,000 characters, in this order."""
    answer = Answer(None, "none", 0, None, 0)
    return [Message(sequence, f"m{sequence}", 0, "user", "message", "x" * 1_000, answer) for sequence in sequences]


@pytest.mark.parametrize(
    ("after", "limit", "most_bytes", "expected"),
    (
        (0, 10, 1 << 20, [1, 2, 3, 4]),
        (1, 10, 1 << 20, [2, 3, 4]),
        (0, 3, 1 << 20, [1, 2, 3]),
        (4, 10, 1 << 20, []),
        (0, 10, 1, [1, 2]),
        (0, 10, 2_000, [1, 2]),
        (0, 10, 3_000, [1, 2, 3]),
        (3, 10, 1, [4]),
        (0, 1, 1, [1]),
    ),
)
def test_first_messages_in_order_up_to_a_size(after: int, limit: int, most_bytes: int, expected: list[int]) -> None:
    """The one that passes the size is the last, and two come at least, so that a reader gets on."""
    found = first_messages(sized(3, 1, 4, 2), after=after, limit=limit, most_bytes=most_bytes)

    assert [message.sequence for message in found] == expected


def test_first_messages_may_be_as_large_as_the_size_is() -> None:
    """Only the one that passes the size ends them."""
    room = sum(message_size(message) for message in sized(1, 2, 3))

    assert len(first_messages(sized(1, 2, 3, 4), after=0, limit=10, most_bytes=room)) == 4
    assert len(first_messages(sized(1, 2, 3, 4), after=0, limit=10, most_bytes=room - 1)) == 3


def test_tags_that_version_0_1_0_wrote_are_sets_of_one() -> None:
    """It wrote single tags among the historic sets: they are shown, and come back, as sets."""
    state = State(dialog=Dialog(tags=("now",), historic_tags=(("a", "b"), "vip")))

    assert context_view(state)["historic_tags"] == [["a", "b"], ["vip"]]
    assert after_discard(state).dialog == Dialog(tags=("vip",))


def test_limits_alone_describe_nothing() -> None:
    """A field with limits and no description is internal; the description may come after them."""
    described = Meta(description="How many.")

    assert description(Annotated[int, Meta(ge=1)]) is None
    assert description(Annotated[int, Meta(ge=1), described]) is described


class _Shown(Struct):
    """A field and a property that are public, and one of each that are not."""

    field: Annotated[int, Meta(description="A number.")]
    internal: int
    other: ClassVar[Annotated[int, Meta(description="No field.")]] = 1

    @property
    def computed(self) -> Annotated[int, Meta(description="A number made of others.")]:
        return self.field

    @property
    def inner(self) -> int:
        return self.internal


def test_public_is_what_has_a_description() -> None:
    """Fields first, then properties, each with its annotated type."""
    shown = public_fields(_Shown)

    assert list(shown) == ["field", "computed"]
    assert [found.description for hint in shown.values() if (found := description(hint))] == [
        "A number.",
        "A number made of others.",
    ]
