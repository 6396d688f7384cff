"""Surveys (A08): an answer within 24 h of sending counts and, where the policy says so, closes; later it does not."""

from msgspec import structs

from app.domain.entry import Entry
from app.domain.records import Session
from app.domain.rules import ending
from app.domain.rules.pending import expect_no_survey, expect_survey, is_survey_expected
from app.domain.rules.transition import Transition


def sent(transition: Transition, session: Session, _entry: Entry, _message_id: str) -> None:
    transition.session = structs.replace(session, survey_sent_at_ms=transition.now_ms)
    expect_survey(transition)


def answered(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    if not is_survey_expected(transition):
        return
    expect_no_survey(transition)
    session = transition.session = structs.replace(session, survey_answered_at_ms=transition.now_ms)
    if transition.terms.policy.on_survey_answered == "end":
        ending.close(transition, session, "survey_answered", rule="A08", by=message_id)
