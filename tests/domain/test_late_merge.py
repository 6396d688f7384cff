"""Updates of an archived session give the same result in any order."""

from itertools import permutations
from typing import Any

import pytest
from msgspec import structs

from app.domain.records import Session
from app.domain.rules.ending import concluded
from app.domain.rules.late import merged

CLOSED = concluded(Session("s", "ann", "web", 0, entries=3, closed_at_ms=1_000, reason="inactivity"))


def updated(number: int, **fields: Any) -> Session:  # noqa: ANN401 - by the type of each field
    return concluded(structs.replace(CLOSED, late_entries=number, **fields))


RESOLVED = updated(1, outcome="resolved", resolved_at_ms=2_000, session_metadata={"a": 1, "b": 1})
ESCALATED = updated(2, outcome="escalated", resolved_at_ms=2_000, escalated_at_ms=3_000, session_metadata={"a": 1, "b": 2})
SURVEYED = updated(
    3,
    outcome="escalated",
    resolved_at_ms=2_000,
    escalated_at_ms=3_000,
    survey_sent_at_ms=4_000,
    survey_answered_at_ms=5_000,
    session_metadata={"a": 1, "b": 2},
)


@pytest.mark.parametrize("order", tuple(permutations((RESOLVED, ESCALATED, SURVEYED))))
def test_updates_in_any_order_come_to_the_last(order: tuple[Session, ...]) -> None:
    """Each holds all that was known when it was made."""
    session = CLOSED
    for update in order:
        session = merged(session, update)

    assert session == SURVEYED


def test_update_that_does_not_know_an_earlier_one_takes_nothing_back() -> None:
    """After a rollback of Redis: the archive holds that it was escalated, the update only that it was resolved before."""
    session = merged(updated(1, outcome="escalated", escalated_at_ms=3_000), updated(2, outcome="resolved", resolved_at_ms=2_000))

    assert (session.late_entries, session.outcome, session.contained) == (2, "escalated", False)
    assert (session.escalated_at_ms, session.resolved_at_ms) == (3_000, 2_000)


def test_what_a_late_entry_cannot_change_stays_as_it_was_archived() -> None:
    """A session that went on after a rollback, and closed again, is in the archive as it closed first."""
    session = merged(CLOSED, structs.replace(RESOLVED, entries=9, reason="ended", closed_at_ms=9_000))

    assert session == RESOLVED


def test_metadata_stays_absent_where_no_entry_had_any() -> None:
    """Null, and no empty object."""
    assert merged(CLOSED, updated(1)).session_metadata is None
