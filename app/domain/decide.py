"""`decide`: what follows from a command. It reads as RULES.md's table of contents; each rule is a function of its family.

    deadlines that passed  ->  what the entry ends  ->  what it opens  ->  what it counts for  ->  what its kind does

Pure: no clock, no chance, no I/O. The same state, command, rules and instant give the same decision, wherever it is taken.
To add a rule, write its function and name it in one of the tables below.
"""

from collections.abc import Callable

from msgspec import structs

from app.domain import (
    billing,
    context,
    counting,
    ending,
    expecting,
    handoff,
    keeping,
    remembering,
    signals,
    silence,
    starting,
    survey,
    variables,
)
from app.domain.entry import Entry, EntryType
from app.domain.records import (
    Answer,
    BotRules,
    Close,
    Command,
    Decision,
    DeleteVariable,
    Reason,
    Receive,
    Session,
    SessionOpening,
    SetVariable,
    State,
)
from app.domain.strand import Strand
from app.domain.turn import Changes, Turn

_NO_CHANNEL = ""

# An entry that starts anew ends the open session first. The first rule that says why decides.
ENDED_BEFORE: tuple[Callable[[Turn, Session, Entry, EntryType], tuple[Reason, str] | None], ...] = (
    starting.refreshed,
    starting.superseded,
    handoff.split_off,
    silence.left_for_new_intent,
    silence.returned,
)

# What every entry changes in its session.
COUNTED: tuple[Callable[[Turn, Session, Entry, Changes], None], ...] = (
    counting.count,
    counting.take_part,
    counting.see,
    billing.bill,
    silence.move_deadline,
)

# What an entry of a kind does to the session that it now belongs to.
EFFECTS: dict[EntryType, Callable[[Turn, Session, Entry, str], None]] = {
    "session.end": signals.end,
    "conversation.ended": signals.end,
    "chat.closed": signals.close_chat,
    "handoff": handoff.hand_off,
    "agent.joined": handoff.agent_joined,
    "agent.left": handoff.agent_left,
    "escalated": signals.escalate,
    "resolved": signals.resolve,
    "survey.sent": survey.sent,
    "survey.answered": survey.answered,
    "interrupted": signals.interrupt,
    "discard": context.discard,
    "discard.all": context.discard_all,
}

# What an entry of a kind that starts nothing leaves behind where no session is open.
BETWEEN: dict[EntryType, Callable[[Turn], None]] = {
    "handoff": handoff.handed_off_between,
    "agent.left": expecting.expect_no_agent,
    "survey.sent": expecting.expect_survey,
    "discard": context.discard_between,
    "discard.all": context.discard_all_between,
}


def decide(strand: Strand, state: State, command: Command, bot: BotRules, now_ms: int) -> Decision:  # noqa: PLR0917  the five things that a decision is made of
    """The decision on `command`, at `now_ms` or, since a strand's time never goes back, when it was last touched."""
    session = state.session
    terms = bot.policy.terms(_NO_CHANNEL if session is None else session.channel)
    turn = Turn(strand, state, bot.policy, state, max(now_ms, state.touched_at_ms), session, terms)
    silence.pass_deadlines(turn)
    answer = None
    if isinstance(command, Receive):
        answer = _receive(turn, command)
    elif isinstance(command, Close):
        answer = _close(turn, command)
    elif isinstance(command, SetVariable):
        variables.put(turn, command)
    elif isinstance(command, DeleteVariable):
        variables.delete(turn, command)
    return _decision(turn, answer)


def _receive(turn: Turn, command: Receive) -> Answer:
    entry, message_id = command.entry, command.message_id
    kind = signals.kind_of(entry)
    if entry.context is not None or entry.metadata is not None:
        keeping.check(entry)
    rule = _end_before(turn, entry, kind)
    if turn.session is None:
        rule = rule or starting.rule_of(entry, kind)
        if rule is None:
            _receive_between(turn, entry, kind)
            return Answer(None, "none", 0, None, turn.now_ms)
        session = _count(turn, starting.open_session(turn, command, kind, rule=rule), entry, message_id)
        turn.tell("session.started", session, at_ms=turn.now_ms, rule=rule)
        opening: SessionOpening = "opened"
    else:
        session = _count(turn, turn.session, entry, message_id)
        opening = "continued"
    if entry.tags or entry.context is not None or entry.sentiment is not None:
        context.learn(turn, entry)
    if kind in EFFECTS:
        EFFECTS[kind](turn, session, entry, message_id)
    closes_at_ms = None if turn.session is None else turn.session.deadline_at_ms
    answer = Answer(session.id, opening, session.entries, closes_at_ms, turn.now_ms, turn.ended)
    turn.messages = ((session.id, keeping.message_of(entry, message_id, session=session, answer=answer)),)
    return answer


def _receive_between(turn: Turn, entry: Entry, kind: EntryType) -> None:
    """No session is open, and the entry starts none."""
    turn.terms = turn.policy.terms(entry.channel)
    if kind in BETWEEN:
        BETWEEN[kind](turn)


def _end_before(turn: Turn, entry: Entry, kind: EntryType) -> str | None:
    """End the open session if the entry starts anew; the row by which it does."""
    session = turn.session
    if session is None or signals.is_relay(entry):
        return None
    for rule in ENDED_BEFORE:
        verdict = rule(turn, session, entry, kind)
        if verdict is not None:
            ending.close(turn, session, verdict[0], rule=verdict[1])
            return verdict[1]
    return None


def _count(turn: Turn, session: Session, entry: Entry, message_id: str) -> Session:
    changes: Changes = {}
    for rule in COUNTED:
        rule(turn, session, entry, changes)
    if changes["deadline_at_ms"] != session.deadline_at_ms:
        changes["deadline_by"] = message_id
    session = turn.session = structs.replace(session, **changes)
    return session


def _close(turn: Turn, command: Close) -> Answer:
    """K20: the close API. A session that is not open (any more) is left alone."""
    session = turn.session
    if session is None or session.id != command.session_id:
        return Answer(None, "none", 0, None, turn.now_ms)
    ending.close(turn, session, "api", rule="K20")
    return Answer(session.id, "none", 0, None, turn.now_ms, turn.ended)


def _decision(turn: Turn, answer: Answer | None) -> Decision:
    """What was changed, with the instants that follow from it. A state that nothing has changed stays the same object."""
    state = remembering.kept(turn)
    if turn.grew:
        remembering.check_size(state)
    session = state.session
    wake_at_ms = None if session is None else silence.wake_at_ms(session)
    return Decision(state, wake_at_ms, remembering.keep_until_ms(state), turn.messages, turn.events, answer)
