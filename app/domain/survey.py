"""Surveys (A08): an answer within 24 h of sending counts and, where the policy says so, closes; later it does not."""

from msgspec import structs

from app.domain import ending
from app.domain.entry import Entry
from app.domain.expecting import expect_no_survey, expect_survey, is_survey_expected
from app.domain.records import Session
from app.domain.turn import Turn


def sent(turn: Turn, session: Session, _entry: Entry, _message_id: str) -> None:
    turn.session = structs.replace(session, survey_sent_at_ms=turn.now_ms)
    expect_survey(turn)


def answered(turn: Turn, session: Session, _entry: Entry, message_id: str) -> None:
    if not is_survey_expected(turn):
        return
    expect_no_survey(turn)
    session = turn.session = structs.replace(session, survey_answered_at_ms=turn.now_ms)
    if turn.terms.policy.on_survey_answered == "end":
        ending.close(turn, session, "survey_answered", rule="A08", by=message_id)
