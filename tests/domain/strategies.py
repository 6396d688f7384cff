"""Strategies of the property tests: entries of every kind, policies of every kind, and the time between."""

from typing import Any, get_args

from hypothesis import strategies as st

from app.domain.entry import Entry, EntryType, Role
from app.domain.policy.model import Policy
from app.domain.policy.parse import PRESETS, policy_from
from tests.domain.talk import entry_of

MINUTE = 60_000
_CONTROL = ["new session", "discard", "discard all"]
TYPES = get_args(EntryType)

# Deadlines are hit on the spot, missed by a millisecond, and passed by far.
_MINUTES = (1, 4, 5, 14, 15, 30, 60, 24 * 60, 24 * 60 + 1, 8 * 24 * 60)
_PAUSES_MS = [0, 1, 5 * MINUTE - 1, *(minutes * MINUTE for minutes in _MINUTES)]
PAUSES = st.sampled_from(_PAUSES_MS)

# Entries and bytes of a session: an entry has about 40 to 200 bytes. 0 is no limit.
QUOTAS = st.tuples(st.sampled_from([0, 0, 1, 2, 5, 20]), st.sampled_from([0, 0, 1, 100, 200, 1_000, 3_000]))


@st.composite
def entries(draw: st.DrawFn, *, channel: str) -> Entry:
    """Mostly messages, sometimes anything else; a few fields that rules look at."""
    role = draw(st.sampled_from(["user", "user", "user", "bot", "bot", *get_args(Role)]))
    fields: dict[str, Any] = {"type": draw(st.sampled_from(["message"] * 12 + list(TYPES))), "channel": channel}
    for name, values in _SOMETIMES.items():
        if draw(st.integers(0, 7)) == 0:
            fields[name] = draw(values)
    return entry_of(role, draw(_WORDS), **fields)


_WORDS = st.sampled_from([None, "hello", "hello", " Discard ", "discard all", "please discard", "bye", "tchau 15"])
_SOMETIMES: dict[str, st.SearchStrategy[Any]] = {
    "intent": st.sampled_from(["pay", "cancel"]),
    "intent_valid": st.booleans(),
    "tags": st.lists(st.sampled_from([*_CONTROL, "vip", "billing"]), max_size=2),
    "language": st.sampled_from(["pt-BR", "en"]),
    "context": st.just({"topic": "shoes"}),
    "sentiment": st.just({"angry": 0.5}),
    "developer": st.booleans(),
    "refresh": st.sampled_from([False, False, True]),
    "in_reply_to": st.just("evt_1"),
    "session_metadata": st.sampled_from([{"phone": "+55"}, {"vip": True}]),
}

_TEXTS = {"default": "bye", "pt": "tchau {minutes}"}
_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "method": st.sampled_from(["inactivity", "inactivity", "platform", "client"]),
    "closing": st.sampled_from(["proactive", "on_new_intent", "on_return"]),
    "inactivity_minutes": st.sampled_from([5, 15, 60]),
    "inactivity_clock": st.sampled_from(["any", "user"]),
    "closure_message": st.sampled_from(
        [None, {"texts": _TEXTS}, {"texts": _TEXTS, "channels": ["sms"]}, {"texts": _TEXTS, "to": "all"}]
    ),
    "reminder": st.sampled_from([None, {"texts": _TEXTS, "minutes": 1}, {"texts": _TEXTS, "minutes": 4}]),
    "on_handoff": st.sampled_from(["continue", "end", "split", "pause"]),
    "on_escalated": st.sampled_from(["continue", "end"]),
    "on_resolved": st.sampled_from(["continue", "end"]),
    "on_survey_answered": st.sampled_from(["continue", "end"]),
    "discard_closes": st.booleans(),
    "discard_utterances": st.sampled_from([[], ["discard"]]),
    "discard_all_utterances": st.sampled_from([[], ["discard all"]]),
    "starts_with": st.sampled_from([["message"], ["article.opened"], ["session.start", "connect"]]),
    "bot_starts": st.booleans(),
    "agent_message_joins": st.booleans(),
    "requires_bot": st.booleans(),
    "abandon_after_hours": st.sampled_from([1, 24, 168]),
    "max_duration_hours": st.sampled_from([1, 2, 168]),
    "billing_block_minutes": st.sampled_from([1, 15]),
    "epilogue_seconds": st.sampled_from([0, 299, 300, 600]),
    "epilogue_intents": st.sampled_from([[], ["pay"]]),
    "transcript": st.sampled_from(["full", "redacted", "none"]),
    "redact_masks": st.sampled_from([[], ["ORD-###"]]),
}


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """A preset or none, with some fields set otherwise."""
    given: dict[str, Any] = {"preset": draw(st.sampled_from([None, *PRESETS]))}
    for name in draw(st.sets(st.sampled_from(sorted(_FIELDS)), max_size=6)):
        given[name] = draw(_FIELDS[name])
    return policy_from(given)
