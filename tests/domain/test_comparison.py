"""One history under several policies: the differences add up, and each has its reason."""

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import json, structs

from app.domain.comparison import SETTINGS, Difference, Line, PolicyTotals, Ratio, Rerun, differences, totals
from app.domain.policy.model import Policy
from app.domain.policy.parse import PRESETS, policy_from
from app.domain.records import Answer, Reason, Session
from app.domain.strand import Strand, session_id
from app.domain.transcript import entry_from, message_of
from tests.domain.strategies import PAUSES, entries, policies
from tests.domain.talk import NOON_MS, entry_of

MINUTE_MS = 60_000


def rerun(lines: list[Line], **policy: object) -> Rerun:
    return rerun_under(lines, policy_from(policy))


def rerun_under(lines: list[Line], policy: Policy) -> Rerun:
    made = Rerun("shop", policy)
    for line in lines:
        made.feed(line)
    return made


def lines(*said: tuple[float, str, dict[str, Any]]) -> list[Line]:
    """Minute, role and fields of each entry of user `ann`."""
    return [
        Line(number, NOON_MS + round(at * MINUTE_MS), entry_of(role, "hi", **fields))
        for number, (at, role, fields) in enumerate(said)
    ]


SILENT = lines((0, "user", {}), (1, "bot", {}), (8, "user", {}), (9, "bot", {}), (40, "user", {}), (41, "bot", {}))


def test_a_shorter_silence_makes_more_sessions() -> None:
    """7 minutes of silence: one session under 15 minutes, two under 5, each difference with the settings that made it."""
    ours, theirs = rerun(SILENT), rerun(SILENT, preset="aivo")

    assert (totals(ours.sessions()).sessions, totals(theirs.sessions()).sessions) == (2, 3)
    assert differences(theirs, ours) == [
        Difference("inactivity", "web", 1, 0, {"inactivity_minutes": (5, 15), "inactivity_clock": ("user", "any")})
    ]


def test_sessions_without_a_bot_are_not_counted_by_reamaze() -> None:
    said = lines((0, "user", {}), (60, "user", {}), (61, "bot", {}))
    ours, theirs = rerun(said), rerun(said, preset="reamaze")

    assert differences(theirs, ours) == [Difference("not_counted", "web", 0, 1, {"requires_bot": (True, False)})]


def test_containment_is_of_interactive_sessions() -> None:
    said = lines((0, "user", {}), (1, "bot", {"type": "escalated"}), (60, "bot", {}), (120, "user", {}), (121, "bot", {}))

    assert totals(rerun(said).sessions()).contained == Ratio(1, 2)


@settings(deadline=None)
@given(said=st.lists(st.tuples(entries(channel="web"), PAUSES), max_size=25), one=policies(), other=policies())
def test_differences_add_up(said: list[tuple[Any, int]], one: Policy, other: Policy) -> None:
    """More less fewer is the difference of the two counts, whatever was said and whatever the policies are."""
    at_ms, history = NOON_MS, []
    for number, (entry, pause_ms) in enumerate(said):
        at_ms += pause_ms
        history.append(Line(number, at_ms, entry))
    theirs, ours = rerun_under(history, one), rerun_under(history, other)
    found = differences(theirs, ours)

    assert sum(each.more - each.fewer for each in found) == totals(theirs.sessions()).sessions - totals(ours.sessions()).sessions
    assert differences(ours, ours) == []


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_counts_without_refusing_what_it_can_place(preset: str) -> None:
    """Only method `client` needs a session's name with each entry."""
    assert (rerun(SILENT, preset=preset).refused > 0) == (PRESETS[preset].get("method") == "client")


# Reasons that an entry, a request or a quota gives, whatever the policy says.
BY_NO_SETTING = {"ended", "chat_closed", "api", "refresh", "interrupted", "max_size"}
# Settings that say what a boundary does, or which entries make one; no close names them.
AT_NO_CLOSE = {
    *("channels", "closure_message", "reminder", "discard_utterances", "discard_all_utterances", "starts_with", "bot_starts"),
    *("agent_message_joins", "billing_block_minutes", "epilogue_seconds", "epilogue_intents", "transcript", "redact_masks"),
}


def test_every_setting_and_every_reason_has_its_place() -> None:
    """A new reason names the settings that decide it, or is of no setting; a new setting is of a reason, or is of none."""
    assert SETTINGS.keys() ^ BY_NO_SETTING == {"not_counted", *get_args(Reason)}
    assert {name for names in SETTINGS.values() for name in names} ^ AT_NO_CLOSE == set(Policy.__struct_fields__)


@settings(deadline=None)
@example(entry=entry_of("user", "hi", tags=["vip"]), channel="web")
@given(entry=entries(channel="web"), channel=st.sampled_from(["web", "sms"]))
def test_an_entry_comes_back_from_its_message(entry: Any, channel: str) -> None:  # noqa: ANN401 - as drawn
    """Every field but `sent_at`, also after the message was kept as JSON."""
    entry = structs.replace(entry, conversation_id="c", message_id="m", sent_at=datetime(2026, 1, 1, tzinfo=UTC))
    session = Session("s", entry.user_id, channel, NOON_MS)
    message = message_of(entry, "m", policy=Policy(), session=session, answer=Answer("s", "continued", 1, None, NOON_MS))
    kept = json.decode(json.encode(message), type=type(message))

    assert entry_from(kept, channel=channel, conversation_id="c") == structs.replace(entry, sent_at=None)


def test_totals_add_up_what_each_session_counted() -> None:
    """Interactive ones, messages and billing sessions; a session is the one that `decide` makes for this bot."""
    found = rerun(SILENT).sessions()
    first = found[0].session

    assert totals(found) == PolicyTotals(2, 2, 6, 2, Ratio(2, 2))
    assert (first.id, first.policy_version) == (
        session_id(Strand("shop", "web:ann"), generation=1, opened_at_ms=NOON_MS),
        1,
    )


def test_each_entry_that_cannot_be_placed_is_counted() -> None:
    assert rerun(SILENT, method="client").refused == len(SILENT)


def test_a_session_that_opens_under_one_policy_alone() -> None:
    """No session closed before it, so no close is the reason."""
    said = lines((0, "bot", {}), (1, "user", {}))
    ours, theirs = rerun(said, bot_starts=False), rerun(said)

    assert differences(theirs, ours) == [Difference("opened", "web", 1, 1, {})]


def test_settings_are_those_of_the_channel() -> None:
    """A difference names the settings that differ where it is, on either side."""
    ours = rerun(SILENT, channels={"web": {"inactivity_minutes": 6}})
    theirs = rerun(SILENT, channels={"web": {"inactivity_minutes": 5}})
    plain = rerun(SILENT)

    assert differences(theirs, ours) == []
    assert differences(theirs, plain) == [Difference("inactivity", "web", 1, 0, {"inactivity_minutes": (5, 15)})]
    assert differences(plain, ours) == [Difference("inactivity", "web", 0, 1, {"inactivity_minutes": (15, 6)})]
