"""A strand to talk to in tests: entries in, decisions out, minutes for time. It repeats no rule."""

from msgspec import convert

from app.domain.entry import Entry
from app.domain.instants import MINUTE_MS
from app.domain.policy.model import PolicyVersion
from app.domain.policy.parse import policy_from
from app.domain.records import (
    Answer,
    ApplyPolicy,
    BotRules,
    Close,
    Command,
    Decision,
    Event,
    Message,
    Receive,
    Session,
    State,
    Wake,
)
from app.domain.rules.decide import decide
from app.domain.strand import Strand, strand_of

NOON_MS = 1_795_262_400_000


class Talk:
    """One strand of bot `shop` under a policy; `at` is in minutes since noon."""

    def __init__(self, **policy: object) -> None:
        self.bot = BotRules("shop", PolicyVersion(1, NOON_MS, policy_from(policy)))
        self.state = State()
        self.strand: Strand | None = None
        self.decisions: list[Decision] = []
        self.events: list[Event] = []
        self.messages: list[tuple[str, Message]] = []

    def say(self, role: str, text: str | None = None, *, at: float = 0, **fields: object) -> Answer:
        """The answer to an entry; its `message_id` is `m1`, `m2`, … unless it is given."""
        entry = entry_of(role, text, **fields)
        self.strand = strand_of("shop", entry, self.bot.policy)
        message_id = entry.message_id or f"m{len(self.decisions) + 1}"
        answer = self.do(Receive(entry, message_id), at=at).answer
        assert answer is not None
        return answer

    def do(self, command: Command, *, at: float) -> Decision:
        strand = self.strand or Strand("shop", "web:ann")
        decision = decide(strand, self.state, command, self.bot, NOON_MS + round(at * MINUTE_MS))
        self.state = decision.state
        self.decisions.append(decision)
        self.events.extend(decision.events)
        self.messages.extend(decision.messages)
        return decision

    def wake(self, *, at: float) -> Decision:
        return self.do(Wake(), at=at)

    def close(self, *, at: float) -> Decision:
        return self.do(Close(self.open.id), at=at)

    def change_policy(self, *, at: float, **policy: object) -> Decision:
        """Save another version of the policy and apply it at once."""
        self.bot = BotRules(
            "shop", PolicyVersion(self.bot.policy.version + 1, NOON_MS + round(at * MINUTE_MS), policy_from(policy))
        )
        return self.do(ApplyPolicy(), at=at)

    @property
    def open(self) -> Session:
        assert self.state.session is not None
        return self.state.session

    @property
    def closed(self) -> list[Session]:
        return [event.session for event in self.events if event.type == "session.closed"]

    @property
    def closings(self) -> list[tuple[str | None, float]]:
        """Reason and minute of each close."""
        return [(session.reason, minute(session.closed_at_ms)) for session in self.closed]

    @property
    def emitted(self) -> list[tuple[str, str]]:
        """Type and rule of each event."""
        return [(event.type, event.rule) for event in self.events]


def entry_of(role: str, text: str | None = None, **fields: object) -> Entry:
    return convert({"user_id": "ann", "role": role, "text": text, **fields}, Entry)


def minute(at_ms: int | None) -> float:
    assert at_ms is not None
    return (at_ms - NOON_MS) / MINUTE_MS


def nested(levels: int) -> list[object]:
    """Lists in lists, the innermost one empty."""
    value: list[object] = []
    for _ in range(levels - 1):
        value = [value]
    return value
