"""Where sessions begin and end, computed a second time: slowly, from the list of what happened, straight from docs/rules.md.

It shares no code with `app.domain` but the records that entries and policies come in.
"""

from dataclasses import dataclass, field

from app.domain.entry import Entry
from app.domain.policy.model import Policy

MINUTE = 60_000
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class Item:
    """Something that happened at `at`: an entry, a new policy or, if neither is given, a close by API."""

    at: int
    entry: Entry | None = None
    message_id: str = ""
    policy: Policy | None = None


@dataclass
class Line:
    """An entry in its session. `breaks`: it breaks the silence."""

    at: int
    entry: Entry
    breaks: bool = True


@dataclass
class Naive:
    """One session."""

    opened: int
    channel: str
    trade: str
    lines: list[Line] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    closed: int | None = None
    reason: str | None = None
    paused: bool = False
    resumed: int = 0  # an agent left a paused session at this instant
    reminded: int | None = None  # the start of the silence that a reminder was about
    deadline: tuple[int, str] = (0, "")

    def boundaries(self) -> tuple[int, int | None, str | None, list[str]]:
        return self.opened, self.closed, self.reason, self.ids


def sessions_of(items: list[Item], *, until: int) -> list[Naive]:
    """Every session that follows from what happened, looked at from the instant `until`."""
    strand = _Strand()
    for item in items:
        strand.pass_time(item.at)
        if item.policy is not None:
            strand.change_policy(item.at, item.policy)
        elif item.entry is not None:
            strand.take(item.at, item.message_id, item.entry)
        elif strand.now is not None:
            strand.end(item.at, "api")
    strand.pass_time(until)
    return strand.sessions


def by_user(entry: Entry) -> bool:
    return entry.role == "user" or entry.type == "authorization"


def interacts(entry: Entry) -> bool:
    leaving = {"session.end", "conversation.ended", "chat.closed"}
    return by_user(entry) and entry.type not in {"activity", "connect", *leaving}


def meaning(entry: Entry) -> str:
    if entry.type == "message":
        if "new session" in entry.tags:
            return "conversation.started"
        if "discard all" in entry.tags:
            return "discard.all"
        if "discard" in entry.tags:
            return "discard"
    return entry.type


STARTERS = {"message", "session.start", "conversation.started", "connect", "authorization", "agent.joined", "article.opened"}


class _Strand:
    def __init__(self) -> None:
        self.sessions: list[Naive] = []
        self.now: Naive | None = None
        self.policy = Policy()
        self.changed = 0
        self.agent_until = 0
        self.survey_until = 0

    def pass_time(self, at: int) -> None:
        session = self.now
        if session is None:
            return
        deadline, reason = session.deadline
        reminder = self.policy.on(session.channel).reminder
        if reason == "inactivity" and reminder is not None and session.reminded != self.silent_since(session):
            natural = self.silent_since(session) + self.policy.on(session.channel).inactivity_minutes * MINUTE
            due = max(natural - reminder.minutes * MINUTE, self.changed)
            if due < deadline and due <= at:
                session.reminded = self.silent_since(session)
        if deadline <= at:
            self.end(deadline, reason)

    def change_policy(self, at: int, policy: Policy) -> None:
        self.policy, self.changed = policy, at
        if self.now is not None:
            self.now.deadline = self.deadline_of(self.now)

    def end(self, at: int, reason: str) -> None:
        assert self.now is not None
        self.now.closed, self.now.reason = at, reason
        self.now = None

    def silent_since(self, session: Naive) -> int:
        policy = self.policy.on(session.channel)
        interactive = any(interacts(line.entry) for line in session.lines)
        if policy.inactivity_clock == "user" and interactive:
            own = [line.at for line in session.lines if line.breaks and by_user(line.entry)]
        else:
            own = [line.at for line in session.lines if line.breaks]
        return max([*own, session.resumed])

    def deadline_of(self, session: Naive) -> tuple[int, str]:
        policy = self.policy.on(session.channel)
        choices = [(session.opened + policy.max_duration_hours * HOUR, 1, "max_duration")]
        waits = session.paused and policy.on_handoff == "pause"
        if not waits and policy.method == "inactivity" and policy.closing == "proactive":
            choices.append((self.silent_since(session) + policy.inactivity_minutes * MINUTE, 0, "inactivity"))
        elif not waits:
            last = max([*(line.at for line in session.lines if line.breaks), session.resumed])
            choices.append((last + policy.abandon_after_hours * HOUR, 0, "abandoned"))
        at, _, reason = min(choices)
        return max(at, self.changed), reason

    def take(self, at: int, message_id: str, entry: Entry) -> None:
        kind = meaning(entry)
        relays = entry.role == "bot" and entry.in_reply_to is not None and entry.type != "authorization"
        if self.now is not None and not relays:
            reason = self.why_anew(self.now, at, entry, kind)
            if reason is not None:
                self.end(at, reason)
        if self.now is None:
            if relays or not (entry.refresh or kind in STARTERS):
                self.remember(at, entry, kind)
                return
            self.now = self.start(at, entry, kind)
        session = self.now
        line = Line(at, entry)
        if session.lines:
            line.breaks = not self.is_no_break(session, at, entry, relays=relays)
        session.lines.append(line)
        session.ids.append(message_id)
        if entry.role == "agent" and entry.type not in {"activity", "agent.joined"}:
            session.trade = "agent"
        self.act(session, at, kind)
        if self.now is not None:
            session.deadline = self.deadline_of(session)

    def why_anew(self, session: Naive, at: int, entry: Entry, kind: str) -> str | None:
        policy = self.policy.on(session.channel)
        if entry.refresh:
            return "refresh"
        if kind in {"session.start", "conversation.started"}:
            return "superseded"
        if kind == "agent.joined" and policy.on_handoff == "split" and session.trade == "bot":
            return "handoff"
        if kind in STARTERS and by_user(entry) and self.is_silent(session, at):
            new = not entry.intent_valid or (entry.intent is not None and entry.intent != self.intent_of(session))
            if policy.closing == "on_return":
                return "returned"
            return "new_intent" if new else None
        return None

    def intent_of(self, session: Naive) -> str | None:
        intents = [line.entry.intent for line in session.lines if line.entry.intent is not None]
        return intents[-1] if intents else None

    def is_silent(self, session: Naive, at: int) -> bool:
        policy = self.policy.on(session.channel)
        lazy = policy.method == "inactivity" and policy.closing != "proactive"
        return lazy and at >= self.silent_since(session) + policy.inactivity_minutes * MINUTE

    def is_no_break(self, session: Naive, at: int, entry: Entry, *, relays: bool) -> bool:
        if entry.type == "activity" and self.is_silent(session, at):
            return True
        return relays and session.reminded is not None and session.reminded == self.silent_since(session)

    def start(self, at: int, entry: Entry, kind: str) -> Naive:
        if entry.refresh:
            self.agent_until = self.survey_until = 0
        trade = "agent" if kind == "agent.joined" or at < self.agent_until else "bot"
        self.agent_until = 0
        session = Naive(at, entry.channel, trade)
        self.sessions.append(session)
        return session

    def remember(self, at: int, entry: Entry, kind: str) -> None:
        if kind == "handoff" and self.policy.on(entry.channel).on_handoff == "split":
            self.agent_until = at + 24 * HOUR
        if kind == "agent.left":
            self.agent_until = 0
        if kind == "survey.sent":
            self.survey_until = at + 24 * HOUR

    def act(self, session: Naive, at: int, kind: str) -> None:
        policy = self.policy.on(session.channel)
        ends = {
            "session.end": "ended",
            "conversation.ended": "ended",
            "chat.closed": "chat_closed",
            "interrupted": "interrupted",
        }
        if kind in ends:
            self.end(at, ends[kind])
        elif kind == "escalated" and policy.on_escalated == "end":
            self.end(at, "escalated")
        elif kind == "resolved" and policy.on_resolved == "end":
            self.end(at, "resolved")
        elif kind == "discard" and policy.discard_closes:
            self.end(at, "discard")
        elif kind == "survey.sent":
            self.survey_until = at + 24 * HOUR
        elif kind == "survey.answered" and at < self.survey_until:
            self.survey_until = 0
            if policy.on_survey_answered == "end":
                self.end(at, "survey_answered")
        elif kind in {"handoff", "agent.joined", "agent.left"}:
            self.hand_over(session, at, kind, policy.on_handoff)

    def hand_over(self, session: Naive, at: int, kind: str, on_handoff: str) -> None:
        with_bot = session.trade == "bot"
        if kind == "agent.left":
            self.agent_until = 0
            if session.paused:
                session.paused, session.resumed = False, at
            return
        if kind == "agent.joined":
            session.trade = "agent"
        if on_handoff == "pause":
            session.paused = True
        elif on_handoff == "end" and (kind == "handoff" or with_bot):
            self.end(at, "handoff")
        elif on_handoff == "split" and kind == "handoff" and with_bot:
            self.end(at, "handoff")
            self.agent_until = at + 24 * HOUR
