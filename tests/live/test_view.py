"""Reads of live sessions by the API: the list of open ones, walked by pages, and transcripts."""

import pytest

from app.clock import Clock
from app.domain.entry import Entry
from app.domain.policy.model import Policy, PolicyVersion
from app.domain.records import BotRules, Receive
from app.domain.strand import Strand
from app.live.commit import CommitScript
from app.live.ledger import BotContext, Ledger
from app.live.pipe import Argument, Pipe, RedisReply
from app.live.view import LiveView

SHARDS = 4
NOON_MS = 1_700_049_600_000


def ledger_on(pipe: Pipe) -> Ledger:
    """A ledger for a bot with a time of its own."""
    clock = Clock()
    ground = BotContext(BotRules("bot", PolicyVersion(1, 0, Policy())), sandbox=True)
    script = CommitScript(pipe, clock, max_skew_ms=500)
    return Ledger(pipe=pipe, script=script, clock=clock, shards=SHARDS, context_of=lambda _: ground)


async def test_a_long_transcript_is_read_in_portions(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, in order, each message once; and no reply is so long that it blocks other callers."""
    ledger, strand, entry = ledger_on(pipe), Strand("bot", "web:ann"), Entry(user_id="ann", role="user", text="x" * 200)
    under_way = [ledger.submit(strand, Receive(entry, f"m{number}"), at_ms=NOON_MS) for number in range(2_000)]
    answers = [(await each).answer for each in under_way]
    session = answers[0].session_id if answers[0] else None
    assert session is not None
    replies = []
    call = pipe.call

    async def counted(*args: Argument) -> RedisReply:
        replies.append(await call(*args))
        return replies[-1]

    monkeypatch.setattr(pipe, "call", counted)
    monkeypatch.setattr("app.live.view._PORTION_BYTES", 100_000)
    messages = await LiveView(pipe, shards=SHARDS).messages(session)
    named = await LiveView(pipe, shards=SHARDS).messages_named(session, ["m1999", "m5", "unknown"])

    assert [message.sequence for message in messages] == list(range(1, 2_001))
    assert {message.message_id for message in messages} == {f"m{number}" for number in range(2_000)}
    assert max(sum(map(len, fields)) for _, fields in replies[:-1]) < 200_000
    assert [message.message_id for message in named] == ["m1999", "m5"]
    assert await LiveView(pipe, shards=SHARDS).messages(session[:-1] + "0") == []


@pytest.mark.parametrize("limit", (1, 3, 200))
async def test_walk_gives_each_open_session_once_also_those_opened_in_one_ms(pipe: Pipe, limit: int) -> None:
    """40 sessions in 4 instants: ten in each, spread over the shards."""
    ledger = ledger_on(pipe)
    for number in range(40):
        entry = Entry(user_id=f"user{number}", role="user", text="hello")
        at_ms = NOON_MS + number // 10
        await ledger.submit(Strand("bot", f"web:user{number}"), Receive(entry, "m1"), at_ms=at_ms)
    view = LiveView(pipe, shards=SHARDS)

    walked, after = [], None
    while True:
        found, after = await view.page("bot", after=after, limit=limit)
        walked += [item for _, item in found]
        if after is None:
            break

    assert len(walked) == len({item.session.id for item in walked}) == 40
    opened = [item.session.opened_at_ms for item in walked]
    assert opened == sorted(opened)


async def test_a_user_s_open_sessions_are_found_over_all_channels(pipe: Pipe) -> None:
    """Also of conversations whose names differ; none of a user whose id begins alike, and none that has closed."""
    ledger, view = ledger_on(pipe), LiveView(pipe, shards=SHARDS)
    users = ("ann", "ann", "ann", "an", "ann2", "ann ", "Ann", "ann:x")
    strands = [Strand("bot", f"conversation-{number}") for number in range(len(users))]
    for number, (user, strand) in enumerate(zip(users, strands, strict=True)):
        entry = Entry(user_id=user, role="user", text="hello", channel=f"channel{number}")
        await ledger.submit(strand, Receive(entry, "m1"), at_ms=NOON_MS + number)
    await ledger.submit(Strand("other", "c"), Receive(Entry(user_id="ann", role="user"), "m1"), at_ms=NOON_MS)

    opened = await view.sessions_of_user("bot", "ann")
    await ledger.submit(strands[1], Receive(Entry(user_id="ann", role="user", type="session.end"), "m2"), at_ms=NOON_MS + 9)
    left = await view.sessions_of_user("bot", "ann")

    assert [each.strand for each in opened] == strands[:3]
    assert [each.strand for each in left] == [strands[0], strands[2]]
    assert [each.strand for each in await view.sessions_of_user("bot", "ann ")] == [strands[5]]


async def test_a_conversation_passed_to_another_user_is_found_by_the_new_one(pipe: Pipe) -> None:
    """The session that ends and the one that begins, in one commit."""
    ledger, view, strand = ledger_on(pipe), LiveView(pipe, shards=SHARDS), Strand("bot", "shared")
    for user in ("ann", "bob"):
        entry = Entry(user_id=user, role="user", type="session.start", conversation_id="shared")
        await ledger.submit(strand, Receive(entry, f"m-{user}"), at_ms=NOON_MS)

    assert await view.sessions_of_user("bot", "ann") == []
    assert [each.session.user_id for each in await view.sessions_of_user("bot", "bob")] == ["bob"]
