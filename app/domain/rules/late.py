"""Entries after the end (ruling 11): late entries of the session that closed last, and entries without a session.

An entry that starts no session is never dropped. Within 24 h of the close of the strand's last session it is stored with that
session, marked late; otherwise it goes to the bot's list of entries without a session. A late entry moves no deadline, reopens
and bills nothing, and changes no counter but that of late entries.
"""

from msgspec import structs

from app.domain.entry import Entry, EntryType
from app.domain.instants import DAY_MS
from app.domain.records import Answer, Reason, Receive, Session, UnassignedEntry, UnassignedReason
from app.domain.rules import ending, signals
from app.domain.rules.counting import merged_metadata
from app.domain.rules.starting import START_SIGNALS, is_starter
from app.domain.rules.transition import Transition, expect_no_survey, is_agent_expected, is_survey_expected
from app.domain.session_view import message_view
from app.domain.transcript import message_of

LATE_MS = DAY_MS
_LATE_TIMES = ("resolved_at_ms", "escalated_at_ms", "survey_sent_at_ms", "survey_answered_at_ms")
_WITH_EPILOGUE: frozenset[Reason] = frozenset({"inactivity", "resolved", "ended"})


def last_session(transition: Transition) -> Session | None:
    """The session that closed last, if entries can still be late for it."""
    last = transition.state.last
    return None if last is None or transition.now_ms - (last.closed_at_ms or 0) >= LATE_MS else last


def belongs_to_the_past(transition: Transition, entry: Entry, kind: EntryType) -> bool:
    """Whether an entry that could start a session belongs to the one that ended.

    Under method `client` its session id says so (S14); under `platform` a message by anyone but the user does, since only a
    start signal or the user begins (S09); and the epilogue says so of a user's "thanks!".
    """
    last = last_session(transition)
    if last is None or entry.refresh or kind in START_SIGNALS or is_agent_expected(transition):
        return False
    method = transition.terms.policy.method
    if method == "client":
        return True
    if method == "platform" and entry.type == "message" and entry.role != "user":
        return True
    return _is_epilogue(transition, last, entry, kind)


def keep(transition: Transition, session: Session, command: Receive, kind: EntryType) -> Answer:
    """Store the entry with closed `session`, and emit the session as it is with it."""
    entry = command.entry
    session = structs.replace(
        _recorded(transition, session, kind),
        late_entries=session.late_entries + 1,
        session_metadata=merged_metadata(session, entry),
    )
    answer = Answer(session.id, "late", session.entries + session.late_entries, None, transition.now_ms)
    policy = transition.policy.terms(session.channel).policy
    message = message_of(entry, command.message_id, policy=policy, session=session, answer=answer, late=True)
    transition.state = structs.replace(transition.state, last=session)
    transition.grew = True
    transition.messages = ((session.id, message),)
    transition.emit("session.updated", session, at_ms=transition.now_ms, rule="late", data={"message": message_view(message)})
    return answer


def keep_unassigned(transition: Transition, command: Receive, kind: EntryType) -> Answer:
    """Keep the entry with no session."""
    answer = Answer(None, "none", 0, None, transition.now_ms)
    policy = transition.terms.policy
    message = message_of(command.entry, command.message_id, policy=policy, session=None, answer=answer)
    transition.unassigned = (UnassignedEntry(_why(transition, kind), message),)
    return answer


def merged(archived: Session, updated: Session) -> Session:
    """An archived session with all that a late entry can change, as `updated` has it, in whatever order updates are archived.

    The rest stays as it was archived. After a rollback of Redis, `updated` may not know of late entries that the archive holds.
    """
    older, newer = sorted((archived, updated), key=lambda session: session.late_entries)
    last = max((archived, updated), key=lambda session: max(session.resolved_at_ms or 0, session.escalated_at_ms or 0))
    times = {name: max((at for at in (getattr(older, name), getattr(newer, name)) if at), default=None) for name in _LATE_TIMES}
    changed = structs.replace(
        archived,
        late_entries=newer.late_entries,
        session_metadata={**(older.session_metadata or {}), **(newer.session_metadata or {})} or None,
        outcome=last.outcome,
        **times,
    )
    return ending.concluded(changed)


def _recorded(transition: Transition, session: Session, kind: EntryType) -> Session:
    """`session` with the outcome or the survey that a late entry reports."""
    now_ms = transition.now_ms
    if kind == "resolved":
        return ending.concluded(signals.resolved(session, now_ms))
    if kind == "escalated":
        return ending.concluded(signals.escalated(session, now_ms))
    if kind == "survey.sent":
        return structs.replace(session, survey_sent_at_ms=now_ms)
    if kind == "survey.answered" and is_survey_expected(transition):
        expect_no_survey(transition)
        return structs.replace(session, survey_answered_at_ms=now_ms)
    return session


def _is_epilogue(transition: Transition, last: Session, entry: Entry, kind: EntryType) -> bool:
    terms = transition.terms
    if kind != "message" or entry.role != "user" or last.reason not in _WITH_EPILOGUE:
        return False
    in_time = transition.now_ms - (last.closed_at_ms or 0) < terms.epilogue_ms
    return in_time and (entry.intent is None or entry.intent in terms.policy.epilogue_intents)


def _why(transition: Transition, kind: EntryType) -> UnassignedReason:
    if transition.state.last_session_id is not None:
        return "too_late"
    return "cannot_start" if is_starter(kind) else "no_session"
