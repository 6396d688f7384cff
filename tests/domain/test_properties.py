"""Entries in any order: the promises of a session hold, and a second implementation agrees."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec import msgpack, structs

from app.domain.entry import Entry
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import (
    ApplyPolicy,
    BotRules,
    Close,
    Command,
    Decision,
    Event,
    Message,
    Receive,
    Session,
    SessionQuota,
    State,
    Wake,
)
from app.domain.rules.decide import decide
from app.domain.session_view import RULES
from app.domain.strand import Strand, event_id
from tests.domain.naive import Item, sessions_of
from tests.domain.strategies import MINUTE, PAUSES, QUOTAS, entries, policies
from tests.domain.talk import NOON_MS

STRAND = Strand("shop", "c1")
FAR_MS = NOON_MS + 10**12


class Life(RuleBasedStateMachine):
    """One strand under random entries, pauses, wakes, closes by API and changes of policy."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = NOON_MS
        self.state = State()
        self.items: list[Item] = []
        self.events: list[Event] = []
        self.messages: list[tuple[str, Message]] = []
        self.unassigned: list[str] = []
        self.opened: dict[str, Session] = {}
        self.closed: dict[str, Session] = {}
        self.decision: Decision | None = None
        self.command: Command = Wake()
        self.bot = BotRules("shop", PolicyVersion(1, NOON_MS, Policy()))

    @initialize(policy=policies(), quota=QUOTAS)
    def begin(self, policy: Policy, quota: tuple[int, int]) -> None:
        self.bot = BotRules("shop", PolicyVersion(1, NOON_MS, policy), SessionQuota(*quota))
        self.items.append(Item(NOON_MS, policy=policy, quota=quota))

    @rule(entry=st.sampled_from(["web", "web", "web", "sms", "help"]).flatmap(lambda channel: entries(channel=channel)))
    def receive(self, entry: Entry) -> None:
        message_id = f"m{len(self.items)}"
        self.items.append(Item(self.now_ms, entry=entry, message_id=message_id))
        self.do(Receive(entry, message_id))

    @rule(
        entry=entries(channel="web"),
        which=st.integers(1, 5),
        pause=st.sampled_from([0, 1, 10 * MINUTE, 10 * MINUTE + 1, 24 * 60 * MINUTE - 1, 24 * 60 * MINUTE]),
    )
    def relay(self, entry: Entry, which: int, pause: int) -> None:
        """A bot reports a closure message or reminder: by its id or by its text."""
        announced = [event for event in self.events if event.type in {"session.closure_message", "session.reminder"}]
        if len(announced) < which:
            return
        self.wait(pause)
        event = announced[-which]
        message_id = f"m{len(self.items)}"
        if entry.intent_valid:
            entry = structs.replace(entry, role="bot", in_reply_to=event_id(event))
            self.items.append(Item(self.now_ms, entry=entry, message_id=message_id, names=(event.type, event.at_ms)))
        else:
            assert event.data is not None
            entry = structs.replace(entry, role="bot", text=event.data["text"])
            self.items.append(Item(self.now_ms, entry=entry, message_id=message_id))
        self.do(Receive(entry, message_id))

    @rule(pause=PAUSES)
    def wait(self, pause: int) -> None:
        self.now_ms += pause

    @rule(pause=PAUSES, entry=entries(channel="web"))
    def wait_and_receive(self, pause: int, entry: Entry) -> None:
        self.wait(pause)
        self.receive(entry)

    @rule()
    def wake(self) -> None:
        self.do(Wake())

    @rule()
    def close(self) -> None:
        self.do(Wake())
        if self.state.session is not None:
            self.items.append(Item(self.now_ms))
            self.do(Close(self.state.session.id))

    @rule(policy=policies(), quota=QUOTAS)
    def change_policy(self, policy: Policy, quota: tuple[int, int]) -> None:
        self.bot = BotRules("shop", PolicyVersion(self.bot.policy.version + 1, self.now_ms, policy), SessionQuota(*quota))
        self.items.append(Item(self.now_ms, policy=policy, quota=quota))
        self.do(ApplyPolicy())

    def do(self, command: Command) -> None:
        before = self.state
        decision = decide(STRAND, before, command, self.bot, self.now_ms)
        assert decision == decide(STRAND, before, command, self.bot, self.now_ms)
        self.decision, self.command = decision, command
        self.state = msgpack.decode(msgpack.encode(decision.state), type=State)
        assert self.state == decision.state
        self.messages.extend(decision.messages)
        self.unassigned.extend(each.message.message_id for each in decision.unassigned)
        for event in decision.events:
            self.record(event)

    def record(self, event: Event) -> None:
        self.events.append(event)
        assert event.rule in RULES
        if event.type == "session.opened":
            assert event.session.id not in self.opened
            self.opened[event.session.id] = event.session
        elif event.type == "session.closed":
            assert event.session.id not in self.closed
            self.closed[event.session.id] = event.session
        elif event.type == "session.updated":
            before = self.closed[event.session.id]
            assert event.session.late_entries == before.late_entries + 1
            assert (event.session.closed_at_ms, event.session.entries) == (before.closed_at_ms, before.entries)
            assert event.session.billing_sessions == before.billing_sessions
            self.closed[event.session.id] = event.session

    @invariant()
    def one_open_at_most(self) -> None:
        """The session that was opened and not closed is the open one, and there is one such at most."""
        still_open = self.opened.keys() - self.closed.keys()
        assert still_open == ({self.state.session.id} if self.state.session else set())

    @invariant()
    def deadline_is_ahead(self) -> None:
        """After any decision nothing that was due by then is left undone, and an open session is woken for."""
        if self.decision is None or self.state.session is None:
            return
        assert self.decision.wake_at_ms is not None
        assert self.state.touched_at_ms < self.decision.wake_at_ms <= self.state.session.deadline_at_ms

    @invariant()
    def answer_is_what_happened(self) -> None:
        if self.decision is None or self.decision.answer is None:
            return
        answer = self.decision.answer
        owners = [session_id for session_id, _ in self.decision.messages]
        if not isinstance(self.command, Receive):
            assert owners == []
        elif answer.session in {"opened", "continued"}:
            open_now = self.state.session
            assert answer.closes_at_ms == (open_now.deadline_at_ms if open_now else None)
            assert owners == [answer.session_id]
        elif answer.session == "late":
            assert owners == [answer.session_id]
            session = self.closed[answer.session_id or ""]
            assert answer.sequence == session.entries + session.late_entries
        else:
            assert owners == []
            assert len(self.decision.unassigned) == 1

    def teardown(self) -> None:
        self.do(Wake())
        self.sessions_hold_their_entries()
        self.sessions_follow_one_another()
        self.second_implementation_agrees()

    @invariant()
    def open_session_is_within_its_quota(self) -> None:
        """Unless its quota was larger when its last entry came, or its one entry is larger than the quota."""
        session, quota = self.state.session, self.bot.quota
        if session is None or not isinstance(self.command, Receive):
            return
        assert not 0 < quota.max_entries < session.entries
        assert session.entries == 1 or not 0 < quota.max_bytes < session.size_bytes

    def sessions_hold_their_entries(self) -> None:
        """Every entry is in one session or in none, numbered without a gap; those that are not late within the session's time."""
        kept = [message.message_id for _, message in self.messages] + self.unassigned
        assert sorted(kept) == sorted(item.message_id for item in self.items if item.entry is not None)
        for session_id, opened in self.opened.items():
            last = self.closed.get(session_id) or self.state.session
            assert last is not None
            every = [message for owner, message in self.messages if owner == session_id]
            inside = [message for message in every if not message.late]
            assert [message.sequence for message in every] == list(range(1, last.entries + last.late_entries + 1))
            assert every[len(inside) :] == [message for message in every if message.late]
            assert inside[0].received_at_ms == opened.opened_at_ms
            assert inside[-1].received_at_ms == last.last_entry_at_ms
            if last.closed_at_ms is not None:
                assert last.closed_at_ms >= last.last_entry_at_ms

    def sessions_follow_one_another(self) -> None:
        for earlier, later in pairwise(self.opened):
            closed_at_ms = self.closed[earlier].closed_at_ms
            assert closed_at_ms is not None
            assert closed_at_ms <= self.opened[later].opened_at_ms

    def second_implementation_agrees(self) -> None:
        sessions, unassigned = sessions_of(self.items, until=self.now_ms)
        expected = [session.boundaries() for session in sessions]
        found = []
        for session_id, opened in self.opened.items():
            end = self.closed.get(session_id)
            ids = [message.message_id for owner, message in self.messages if owner == session_id and not message.late]
            late = [message.message_id for owner, message in self.messages if owner == session_id and message.late]
            found.append((opened.opened_at_ms, end.closed_at_ms if end else None, end.reason if end else None, ids, late))
        assert found == expected
        assert self.unassigned == unassigned


def live(
    entries_after: list[tuple[int, Entry]], policy: Policy, quota: SessionQuota, *, wakes: bool
) -> tuple[list[Event], list[tuple[str, Message]]]:
    """The events and messages, with or without a worker that wakes the strand whenever it wants."""
    bot, state, now_ms = BotRules("shop", PolicyVersion(1, NOON_MS, policy), quota), State(), NOON_MS
    events: list[Event] = []
    messages: list[tuple[str, Message]] = []
    commands: list[tuple[int, Command]] = [(pause, Receive(entry, f"m{n}")) for n, (pause, entry) in enumerate(entries_after)]
    wake_at_ms: int | None = None
    for pause, command in [*commands, (10**10, Wake())]:
        now_ms += pause
        while wakes and wake_at_ms is not None and wake_at_ms <= now_ms:
            decision = decide(STRAND, state, Wake(), bot, wake_at_ms)
            state, wake_at_ms = decision.state, decision.wake_at_ms
            events.extend(decision.events)
        decision = decide(STRAND, state, command, bot, now_ms)
        state, wake_at_ms = decision.state, decision.wake_at_ms
        events.extend(decision.events)
        messages.extend(decision.messages)
    return events, messages


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PAUSES, entries(channel="web")), max_size=30), policies(), QUOTAS)
def test_nothing_depends_on_when_the_sweeper_looks(
    entries_after: list[tuple[int, Entry]], policy: Policy, quota: tuple[int, int]
) -> None:
    """Woken at every instant that it asks for, or never until the next entry: the same sessions, messages, answers and events."""
    of = SessionQuota(*quota)
    assert live(entries_after, policy, of, wakes=True) == live(entries_after, policy, of, wakes=False)


_QUICK: dict[str, Any] = {"deadline": None, "stateful_step_count": 50, "suppress_health_check": list(HealthCheck)}


def test_promises_hold_for_any_life() -> None:
    """Random entries, pauses, wakes, closes and policies: 100 lives of up to 50 steps."""
    run_state_machine_as_test(Life, settings=settings(max_examples=100, **_QUICK))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_promises_hold_for_very_many_lives() -> None:
    """The same for 2,000 lives."""
    run_state_machine_as_test(Life, settings=settings(max_examples=2_000, **_QUICK))
