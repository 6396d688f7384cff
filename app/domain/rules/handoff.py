"""Hand-off to a human: the effects of `handoff`, `agent.joined` and `agent.left`, as `on_handoff` says. B05, A07, ruling 8."""

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.records import Session
from app.domain.rules import ending, silence
from app.domain.rules.transition import Changes, Transition, Verdict, expect_agent, expect_no_agent


def split_off(transition: Transition, session: Session, _entry: Entry, kind: EntryType) -> Verdict | None:
    """B05: the human joins a session of trade `agent`; that of the bot ends before it."""
    if kind != "agent.joined" or transition.terms.policy.on_handoff != "split":
        return None
    return ("handoff", "B05") if session.trade == "bot" or session.handed_off_at_ms is None else None


def hand_off(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """The bot calls a human: as the policy says, the session ends, goes on, or waits for the human to leave."""
    session = _handed_off(transition, session)
    policy = transition.terms.policy
    if policy.on_handoff == "end":
        ending.close(transition, session, "handoff", rule="A07", by=message_id)
    elif policy.on_handoff == "split" and session.trade == "bot":
        ending.close(transition, session, "handoff", rule="B05", by=message_id)
        expect_agent(transition)
    elif policy.on_handoff == "pause":
        _pause(transition, session, message_id)


def agent_joined(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """A human takes part from here on. If no hand-off was reported, this is one."""
    was_with_bot = session.handed_off_at_ms is None or session.trade == "bot"
    session = transition.session = structs.replace(_handed_off(transition, session), trade="agent", agent_present=True)
    if transition.terms.policy.on_handoff == "end" and was_with_bot:
        ending.close(transition, session, "handoff", rule="A07", by=message_id)
    elif transition.terms.policy.on_handoff == "pause":
        _pause(transition, session, message_id)


def agent_left(transition: Transition, session: Session, _entry: Entry, message_id: str) -> None:
    """The bot is alone with the user again: a paused session's clocks start anew; under `split` the next is the bot's."""
    expect_no_agent(transition)
    session = transition.session = structs.replace(session, agent_present=False)
    if session.paused:
        changes: Changes = {
            "any_clock_at_ms": transition.now_ms,
            "user_clock_at_ms": transition.now_ms,
            "deadline_by": message_id,
        }
        session = _with_deadline(transition, structs.replace(session, paused=False), changes)
    if transition.terms.policy.on_handoff == "split" and session.trade == "agent":
        ending.close(transition, session, "handoff", rule="B05", by=message_id)


def handed_off_between(transition: Transition) -> None:
    """The bot calls a human while no session is open: under `split`, the next session is with the human."""
    if transition.terms.policy.on_handoff == "split":
        expect_agent(transition)


def _handed_off(transition: Transition, session: Session) -> Session:
    """The first hand-off counts."""
    if session.handed_off_at_ms is None:
        session = structs.replace(session, handed_off_at_ms=transition.now_ms)
    transition.session = session
    return session


def _pause(transition: Transition, session: Session, message_id: str) -> None:
    _with_deadline(transition, structs.replace(session, paused=True), {"deadline_by": message_id})


def _with_deadline(transition: Transition, session: Session, changes: Changes) -> Session:
    silence.set_deadline(session, changes, transition.terms)
    session = transition.session = structs.replace(session, **changes)
    return session
