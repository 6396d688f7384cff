"""The oracle finds lost, unexpected and double sessions: one that never finds a fault would prove nothing."""

from dataclasses import replace

import pytest

from tests.faults.draining import close_all
from tests.faults.installation import SILENCE_MS, Installation
from tests.faults.oracle import DAY_MS, expectations, expected_sessions, judge
from tests.faults.talk import Log, Said, Talker


def _said(number: int, at_ms: int, kind: str = "message") -> Said:
    return Said("bot", "user", number, f"m{number}", kind, at_ms, {}, 0.0, 0.0)


@pytest.mark.parametrize(
    ("said", "sessions"),
    (
        ([(0, "message"), (SILENCE_MS - 1, "message")], [(0, 2 * SILENCE_MS - 1, "inactivity", 2)]),
        (
            [(0, "message"), (SILENCE_MS, "message")],
            [(0, SILENCE_MS, "inactivity", 1), (SILENCE_MS, 2 * SILENCE_MS, "inactivity", 1)],
        ),
        ([(0, "message"), (5, "session.end")], [(0, 5, "ended", 2)]),
        ([(0, "message"), (5, "session.end"), (5, "message")], [(0, 5, "ended", 2), (5, 5 + SILENCE_MS, "inactivity", 1)]),
        ([(0, "session.end")], []),
        ([(0, "message"), (SILENCE_MS, "session.end")], [(0, SILENCE_MS, "inactivity", 1)]),
    ),
)
def test_expected_sessions(said: list[tuple[int, str]], sessions: list[tuple[int, int, str, int]]) -> None:
    """By silence at the deadline, by an end at once; an end without a session belongs to none."""
    log = Log()
    log.said = [_said(number, at_ms, kind) for number, (at_ms, kind) in enumerate(said)]

    expected = expected_sessions(log)

    assert [(each.opened_at_ms, each.closed_at_ms, each.reason, len(each.messages)) for each in expected] == sessions


@pytest.mark.parametrize(
    ("said", "late", "unassigned"),
    (
        ([(0, "session.end"), (1, "survey.sent"), (2, "message")], [()], 2),
        ([(0, "message"), (5, "session.end"), (6, "session.end"), (7, "survey.sent")], [("m2", "m3")], 0),
        ([(0, "message"), (SILENCE_MS, "session.end")], [("m1",)], 0),
        ([(0, "message"), (1, "session.end"), (1 + DAY_MS - 1, "survey.sent"), (1 + DAY_MS, "survey.sent")], [("m2",)], 1),
        ([(0, "message"), (1, "survey.sent"), (2, "session.end"), (3, "message"), (4, "message")], [(), ()], 0),
    ),
)
def test_expected_late_entries(said: list[tuple[int, str]], late: list[tuple[str, ...]], unassigned: int) -> None:
    """An entry that starts nothing is late for the last session, for a day; otherwise it belongs to none."""
    log = Log()
    log.said = [_said(number, at_ms, kind) for number, (at_ms, kind) in enumerate(said)]

    sessions, without = expectations(log)

    assert [each.late for each in sessions] == late
    assert without.total() == unassigned


@pytest.fixture
async def archived(stage: Installation) -> Log:
    """A few sessions that went through the whole product, unharmed."""
    bot, log = await stage.make_bot("calm"), Log()
    for part in ("api", "worker"):
        await stage.start(part)
    async with stage.caller() as caller:
        talker = Talker(caller, bot, log)
        for number in (1, 2, 3):
            await talker.say_all(["ann", "ben"], number)
        await talker.advance(seconds=1_000)
        await talker.say("ann", 4)
        await talker.say("ben", 4, kind="survey.sent")
        await talker.say("cleo", 1, kind="session.end")
    await close_all(stage, bot)
    return log


async def test_the_oracle_accepts_an_unharmed_run_and_finds_each_harm(stage: Installation, archived: Log) -> None:
    """Each kind of harm to the archive or to the received webhooks is reported as lost, unexpected or double."""
    before = await judge(stage, archived)
    requests = list(stage.receiver.requests)

    stage.receiver.requests.append(replace(requests[0], headers=requests[0].headers | {"webhook-id": "another"}))
    delivered_twice = await judge(stage, archived)
    stage.receiver.requests[:] = requests[1:]
    undelivered = await judge(stage, archived)
    stage.receiver.requests[:] = requests
    await stage.rows("UPDATE sessions SET closed_at = closed_at + interval '1 ms' WHERE user_id = 'ben'")
    late = await judge(stage, archived)
    await stage.rows("UPDATE messages SET late = NOT late WHERE message_id = 'ben-4'")
    not_late = await judge(stage, archived)
    await stage.rows("DELETE FROM unassigned_entries")
    unassigned_lost = await judge(stage, archived)
    await stage.rows("DELETE FROM messages WHERE message_id = 'ann-2'")
    message_lost = await judge(stage, archived)
    await stage.rows("DELETE FROM sessions")
    await stage.rows("DELETE FROM messages")
    all_lost = await judge(stage, archived)

    before.check()
    assert (before.sessions, before.messages, before.late, before.unassigned) == (3, 8, 1, 1)
    assert (len(delivered_twice.lost), len(delivered_twice.unexpected), len(delivered_twice.double)) == (0, 0, 1)
    assert (len(undelivered.lost), len(undelivered.unexpected), len(undelivered.double)) == (1, 0, 0)
    assert (len(late.lost), len(late.unexpected)) == (1, 1)
    assert any("ben-4 was answered" in found for found in not_late.lost)
    assert any("unassigned" in found for found in unassigned_lost.lost)
    assert any("ann-2" in found for found in message_lost.lost)
    assert any("sequence" in found for found in message_lost.unexpected)
    assert len(all_lost.lost) == 3 + 8 + 1
    assert len(all_lost.unexpected) == 4  # webhooks about sessions that are not there
    with pytest.raises(AssertionError, match="lost"):
        all_lost.check()


async def test_a_message_in_two_sessions_is_found(stage: Installation, archived: Log) -> None:
    """Even where each session by itself looks right."""
    (row,) = await stage.rows("SELECT id::text AS id FROM sessions WHERE user_id = 'ben'")
    other = row.id[:-4] + ("0000" if row.id[-4:] != "0000" else "0001")
    for table, column in (("sessions", "id"), ("messages", "session_id")):
        changed = f"jsonb_populate_record(t, jsonb_build_object('{column}', CAST(:other AS text)))"
        await stage.rows(f"INSERT INTO {table} SELECT ({changed}).* FROM {table} t WHERE {column} = :id", other=other, id=row.id)  # noqa: S608

    verdict = await judge(stage, archived)

    assert len(verdict.double) == 4
    assert any(other in found for found in verdict.lost), "it has no webhook"
    assert len(verdict.unexpected) == 1
