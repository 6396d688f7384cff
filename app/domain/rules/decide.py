"""`decide`: from a state and a command to a decision. It reads as a table of contents; each rule is a function of its family.

    pass deadlines  ->  end the open session  ->  open the next  ->  count the entry  ->  apply its effect
                                              ->  or keep the entry as late, or without a session

Pure: no clock, no chance, no I/O. The same state, command, rules and instant give the same decision, wherever it is taken.
To add a rule, write its function and name it in one of the tables below.
"""

from collections.abc import Callable

from msgspec import structs

from app.domain import transcript
from app.domain.entry import Entry, EntryType
from app.domain.records import (
    Answer,
    BotRules,
    Close,
    Command,
    Decision,
    DeleteVariable,
    Receive,
    Session,
    SessionOpening,
    SessionQuota,
    SetVariable,
    State,
)
from app.domain.rules import (
    counting,
    ending,
    handoff,
    late,
    retention,
    signals,
    silence,
    starting,
    variables,
)
from app.domain.rules.transition import Changes, Transition, Verdict, expect_no_agent, expect_survey
from app.domain.strand import Strand

# An entry that starts anew ends the open session first. The first rule that gives a verdict decides.
ENDED_BEFORE: tuple[Callable[[Transition, Session, Entry, EntryType], Verdict | None], ...] = (
    starting.refreshed,
    starting.superseded,
    handoff.split_off,
    silence.left_for_new_intent,
    silence.returned,
)

# Changes of a session by every entry.
COUNTED: tuple[Callable[[Transition, Session, Entry, Changes], None], ...] = (
    counting.count,
    counting.take_part,
    counting.see,
    counting.bill,
    silence.move_deadline,
)

# Effects of an entry, by its kind, on the session that it belongs to.
EFFECTS: dict[EntryType, Callable[[Transition, Session, Entry, str], None]] = {
    "session.end": signals.end,
    "conversation.ended": signals.end,
    "chat.closed": signals.close_chat,
    "handoff": handoff.hand_off,
    "agent.joined": handoff.agent_joined,
    "agent.left": handoff.agent_left,
    "escalated": signals.escalate,
    "resolved": signals.resolve,
    "survey.sent": signals.survey_sent,
    "survey.answered": signals.survey_answered,
    "interrupted": signals.interrupt,
    "discard": signals.discard,
    "discard.all": signals.discard_all,
}

# Effects of an entry, by its kind, on the strand where no session is open and the entry starts none.
BETWEEN: dict[EntryType, Callable[[Transition], None]] = {
    "handoff": handoff.handed_off_between,
    "agent.left": expect_no_agent,
    "survey.sent": expect_survey,
    "discard": signals.discard_between,
    "discard.all": signals.discard_all_between,
}

MAX_SIZE = "max_size"
"""The quota of a session: an entry that it has no room for ends it and opens the next one, whatever its type."""

_ANY_CHANNEL = ""  # no session is open: the entry's channel decides later, if there is an entry


def decide(strand: Strand, state: State, command: Command, bot: BotRules, now_ms: int) -> Decision:  # noqa: PLR0917  the five things that a decision is made of
    """The decision on `command`, at `now_ms` or, since a strand's time never goes back, when it was last touched."""
    session = state.session
    terms = bot.policy.terms(_ANY_CHANNEL if session is None else session.channel)
    transition = Transition(strand, state, bot.policy, state, max(now_ms, state.touched_at_ms), session, terms)
    silence.pass_deadlines(transition)
    answer = None
    if isinstance(command, Receive):
        answer = _receive(transition, command, bot.quota)
    elif isinstance(command, Close):
        answer = _close(transition, command)
    elif isinstance(command, SetVariable):
        variables.put(transition, command)
    elif isinstance(command, DeleteVariable):
        variables.delete(transition, command)
    return _decision(transition, answer)


def _receive(transition: Transition, command: Receive, quota: SessionQuota) -> Answer:
    entry = command.entry
    transcript.check(entry)
    transition.entry_bytes = transcript.size_of(entry)
    if transition.session is None:
        transition.terms = transition.policy.terms(entry.channel)
    kind = signals.kind_of(entry, transition.session, transition.terms)
    row = _end_before(transition, entry, kind)
    if transition.session is not None and counting.is_full(transition, transition.session, quota):
        ending.close(transition, transition.session, "max_size", rule=MAX_SIZE)
        transition.terms, row = transition.policy.terms(entry.channel), MAX_SIZE
        kind = signals.kind_of(entry, None, transition.terms)
    opens = transition.session is None
    session = transition.session or _open(transition, command, kind, row)
    if session is None:
        return _receive_between(transition, command, kind)
    session = _count(transition, session, command)
    if opens:
        transition.emit("session.opened", session, at_ms=transition.now_ms, rule=session.opening_rule)
    signals.learn(transition, entry)
    if kind in EFFECTS:
        EFFECTS[kind](transition, session, entry, command.message_id)
    return _keep(transition, session, command, "opened" if opens else "continued")


def _open(transition: Transition, command: Receive, kind: EntryType, row: str | None) -> Session | None:
    """The next session, if the entry starts one: by `row`, if it has just ended another by it."""
    if row is None and not late.belongs_to_the_past(transition, command.entry, kind):
        row = starting.rule_of(transition, command.entry, kind)
    return None if row is None else starting.open_session(transition, command, kind, rule=row)


def _receive_between(transition: Transition, command: Receive, kind: EntryType) -> Answer:
    """No session is open, and the entry starts none: it is late for the last one, or belongs to none (ruling 11)."""
    last = late.last_session(transition)
    answer = late.keep_unassigned(transition, command, kind) if last is None else late.keep(transition, last, command, kind)
    if kind in BETWEEN:
        BETWEEN[kind](transition)
    return answer


def _end_before(transition: Transition, entry: Entry, kind: EntryType) -> str | None:
    """End the open session if the entry starts anew; the row by which it does."""
    session = transition.session
    if session is None or (kind == "message" and not entry.refresh and not transition.terms.lazy):
        return None  # nearly always: a plain message ends no session, unless the policy closes lazily
    if signals.is_relay(transition, entry):
        return None
    for rule in ENDED_BEFORE:
        verdict = rule(transition, session, entry, kind)
        if verdict is not None:
            ending.close(transition, session, verdict[0], rule=verdict[1])
            return verdict[1]
    return None


def _count(transition: Transition, session: Session, command: Receive) -> Session:
    changes: Changes = {}
    for rule in COUNTED:
        rule(transition, session, command.entry, changes)
    if changes["deadline_at_ms"] != session.deadline_at_ms:
        changes["deadline_by"] = command.message_id
    session = transition.session = structs.replace(session, **changes)
    return session


def _keep(transition: Transition, session: Session, command: Receive, opening: SessionOpening) -> Answer:
    """Answer the entry, and keep it with its answer in `session`, which it may have ended."""
    closes_at_ms = None if transition.session is None else transition.session.deadline_at_ms
    answer = Answer(session.id, opening, session.entries, closes_at_ms, transition.now_ms, transition.ended)
    message = transcript.message_of(
        command.entry, command.message_id, policy=transition.terms.policy, session=session, answer=answer
    )
    transition.messages = ((session.id, message),)
    return answer


def _close(transition: Transition, command: Close) -> Answer:
    """K20: the close API. A session that is not open (any more) is not changed."""
    session = transition.session
    if session is None or session.id != command.session_id:
        return Answer(None, "none", 0, None, transition.now_ms)
    ending.close(transition, session, "api", rule="K20", by=command.closed_by)
    return Answer(session.id, "none", 0, None, transition.now_ms, transition.ended)


def _decision(transition: Transition, answer: Answer | None) -> Decision:
    """The changes, with the instants that follow from them. A state that nothing has changed stays the same object."""
    state = retention.kept(transition)
    if transition.grew:
        retention.check_size(state)
    session = state.session
    wake_at_ms = None if session is None else silence.wake_at_ms(session)
    keep_until_ms = retention.keep_until_ms(state)
    return Decision(state, wake_at_ms, keep_until_ms, transition.messages, transition.events, answer, transition.unassigned)
