"""The boundaries of sessions, worked out a second time: slowly, from the whole list of what happened, straight from the rules.

It shares no code with `app.domain` but the records that entries and policies come in.
"""

import json
from dataclasses import dataclass, field

import msgspec

from app.domain.entry import Entry
from app.domain.policy.model import Policy

MINUTE = 60_000
HOUR = 60 * MINUTE


@dataclass(frozen=True)
class Item:
    """One thing that happened at `at`: an entry, a new policy or, if neither is given, a close by API.

    `quota` comes with a policy: how many entries and bytes a session has at most; 0: any number. `names` is the event that the
    entry's `in_reply_to` names, by its type and instant.
    """

    at: int
    entry: Entry | None = None
    message_id: str = ""
    policy: Policy | None = None
    quota: tuple[int, int] = (0, 0)
    names: tuple[str, int] | None = None


@dataclass(frozen=True)
class Announced:
    """A closure message or reminder."""

    type: str
    at: int
    text: str


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
    handed_off: bool = False
    agent_present: bool = False
    late: list[str] = field(default_factory=list)  # ids of late entries

    def boundaries(self) -> tuple[int, int | None, str | None, list[str], list[str]]:
        return self.opened, self.closed, self.reason, self.ids, self.late


def sessions_of(items: list[Item], *, until: int) -> tuple[list[Naive], list[str]]:
    """Every session that follows, seen at the instant `until`, and the ids of the entries that belong to none."""
    strand = _Strand()
    for item in items:
        strand.pass_time(item.at)
        if item.policy is not None:
            strand.change_policy(item.at, item.policy)
            strand.quota = item.quota
        elif item.entry is not None:
            strand.take(item, item.entry)
        elif strand.now is not None:
            strand.end(item.at, "api")
    strand.pass_time(until)
    return strand.sessions, strand.unassigned


def by_user(entry: Entry) -> bool:
    return entry.role == "user" or entry.type == "authorization"


def interacts(entry: Entry) -> bool:
    leaving = {"session.end", "conversation.ended", "chat.closed"}
    return by_user(entry) and entry.type not in {"activity", "connect", *leaving}


def meaning(entry: Entry, policy: Policy, session: Naive | None) -> str:
    if entry.type != "message":
        return entry.type
    words = (entry.text or "").strip().lower() if entry.role == "user" else ""
    if "new session" in entry.tags:
        return "conversation.started"
    if "discard all" in entry.tags or ("discard" not in entry.tags and words in policy.discard_all_utterances):
        return "discard.all"
    if "discard" in entry.tags or words in policy.discard_utterances:
        return "discard"
    joins = entry.role == "agent" and policy.agent_message_joins and not (session and session.agent_present)
    return "agent.joined" if joins else "message"


def may_start(entry: Entry, kind: str, policy: Policy) -> bool:
    if kind not in STARTERS or not {kind, entry.type} & set(policy.starts_with):
        return False
    return policy.bot_starts or entry.role != "bot" or kind not in {"message", "connect"}


STARTERS = {"message", "session.start", "conversation.started", "connect", "authorization", "agent.joined", "article.opened"}


class _Strand:
    def __init__(self) -> None:
        self.sessions: list[Naive] = []
        self.now: Naive | None = None
        self.policy = Policy()
        self.quota = (0, 0)
        self.changed = 0
        self.agent_until = 0
        self.survey_until = 0
        self.announced: list[Announced] = []
        self.unassigned: list[str] = []

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
                self.announce("session.reminder", session, due)
        if deadline <= at:
            message = self.policy.on(session.channel).closure_message
            spoke = any(interacts(line.entry) for line in session.lines)
            if reason == "inactivity" and message is not None and (spoke or message.to == "all"):
                self.announce("session.closure_message", session, deadline)
            self.end(deadline, reason)

    def announce(self, kind: str, session: Naive, at: int) -> None:
        policy = self.policy.on(session.channel)
        spoken = policy.reminder if kind == "session.reminder" else policy.closure_message
        assert spoken is not None
        if spoken.channels is None or session.channel in spoken.channels:
            languages = [line.entry.language for line in session.lines if line.entry.language is not None]
            text = spoken.texts["pt" if languages and languages[-1] == "pt-BR" else "default"]
            self.announced.append(Announced(kind, at, text.replace("{minutes}", str(policy.inactivity_minutes))))

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

    def take(self, item: Item, entry: Entry) -> None:
        at = item.at
        policy = self.policy.on(entry.channel if self.now is None else self.now.channel)
        kind = meaning(entry, policy, self.now)
        relays = self.relays(item, entry)
        opens = False
        if self.now is not None and not relays:
            reason = self.why_anew(self.now, at, entry, kind)
            if reason is not None:
                self.end(at, reason)
                opens = True
        if self.now is not None and self.is_full(self.now, entry):
            self.end(at, "max_size")
            opens = True
            policy = self.policy.on(entry.channel)
            kind = meaning(entry, policy, None)
        if self.now is None:
            if not opens and (relays or not self.starts(at, entry, kind)):
                self.keep(item, entry, kind)
                return
            self.now = self.start(at, entry, kind)
        session = self.now
        line = Line(at, entry)
        if session.lines:
            line.breaks = not self.is_no_break(session, at, entry, relays=relays)
        session.lines.append(line)
        session.ids.append(item.message_id)
        if entry.role == "agent" and entry.type == "message" and (session.agent_present or not policy.agent_message_joins):
            session.trade = "agent"
        self.act(session, at, kind)
        if self.now is not None:
            session.deadline = self.deadline_of(session)

    def is_full(self, session: Naive, entry: Entry) -> bool:
        """Whether the session with this entry would have more entries, or more bytes of JSON, than it may."""
        entries, size = self.quota
        texts = [json.dumps(msgspec.to_builtins(line.entry), separators=(",", ":")) for line in [*session.lines, Line(0, entry)]]
        return 0 < entries < len(texts) or 0 < size < sum(map(len, texts))

    def relays(self, item: Item, entry: Entry) -> bool:
        """The bot reports one of the four latest announcements: names it within 24 hours, or repeats it within 10 minutes."""
        if entry.role != "bot" or entry.type == "authorization":
            return False
        recent = [each for each in self.announced[-4:] if item.at - each.at < 24 * HOUR]
        words = entry.text.strip() if entry.text is not None and entry.type == "message" else None
        return any(
            item.names == (each.type, each.at) or (words == each.text and item.at - each.at <= 10 * MINUTE) for each in recent
        )

    def latest(self, at: int) -> Naive | None:
        """The session that closed last, for 24 hours."""
        last = self.sessions[-1] if self.sessions else None
        return last if last is not None and last.closed is not None and at - last.closed < 24 * HOUR else None

    def starts(self, at: int, entry: Entry, kind: str) -> bool:
        """Whether an entry opens a session where none is open."""
        policy, last = self.policy.on(entry.channel), self.latest(at)
        if entry.refresh:
            return True
        signal = kind in {"session.start", "conversation.started"}
        if last is not None and last.closed is not None and not signal and at >= self.agent_until:
            if policy.method == "client" or (policy.method == "platform" and entry.type == "message" and entry.role != "user"):
                return False
            says_thanks = kind == "message" and entry.role == "user" and entry.intent in {None, *policy.epilogue_intents}
            ended_well = last.reason in {"inactivity", "resolved", "ended"}
            if says_thanks and ended_well and at < last.closed + policy.epilogue_seconds * 1000:
                return False
        return may_start(entry, kind, policy)

    def keep(self, item: Item, entry: Entry, kind: str) -> None:
        """It is late for the last session, or belongs to none."""
        last = self.latest(item.at)
        (self.unassigned if last is None else last.late).append(item.message_id)
        self.remember(item.at, entry, kind)
        if last is not None and kind == "survey.answered" and item.at < self.survey_until:
            self.survey_until = 0

    def why_anew(self, session: Naive, at: int, entry: Entry, kind: str) -> str | None:
        policy = self.policy.on(session.channel)
        if entry.refresh:
            return "refresh"
        if kind in {"session.start", "conversation.started"} and may_start(entry, kind, policy):
            return "superseded"
        with_bot = session.trade == "bot" or not session.handed_off
        if kind == "agent.joined" and policy.on_handoff == "split" and with_bot:
            return "handoff"
        if may_start(entry, kind, policy) and by_user(entry) and self.is_silent(session, at):
            new = not entry.intent_valid or (entry.intent is not None and entry.intent != self.intent_of(session))
            if policy.closing == "on_return":
                return "returned"
            return "new_intent" if new else None
        return None

    def intent_of(self, session: Naive) -> str | None:
        own = [line.entry.intent for line in session.lines if line.entry.role == "user" and line.entry.type != "activity"]
        if own and own[-1] is not None:
            return own[-1]
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
        session = Naive(at, entry.channel, trade, handed_off=trade == "agent")
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
            session.agent_present = False
            if session.paused:
                session.paused, session.resumed = False, at
            if on_handoff == "split" and session.trade == "agent":
                self.end(at, "handoff")
            return
        first = not session.handed_off
        session.handed_off = True
        if kind == "agent.joined":
            session.trade, session.agent_present = "agent", True
        if on_handoff == "pause":
            session.paused = True
        elif on_handoff == "end" and (kind == "handoff" or with_bot or first):
            self.end(at, "handoff")
        elif on_handoff == "split" and kind == "handoff" and with_bot:
            self.end(at, "handoff")
            self.agent_until = at + 24 * HOUR
