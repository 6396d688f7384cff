"""Closed sessions in Postgres: written once, whatever is repeated, and read back as they were."""

import asyncio
import re
from datetime import UTC, datetime
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from msgspec import structs
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import session_reads, sessions
from app.archive.partitions import month_of
from app.archive.session_reads import ArchivedSession, SessionFilter, SessionOrder, SessionPlace
from app.archive.sessions import ClosedSession, existing_message_ids, insert_closed
from app.clock import wall_ms
from app.domain.instants import DAY_MS, ms_of
from app.domain.records import Session
from app.domain.strand import opened_at_ms_of
from tests.closed import NOVEMBER_MS, closed_session, message
from tests.tooling.tree import ROOT


async def insert(engine: AsyncEngine, *batch: ClosedSession) -> set[str]:
    async with engine.begin() as conn:
        return await insert_closed(conn, batch)


async def count(engine: AsyncEngine, table: str) -> int:
    async with engine.connect() as conn:
        return int(await conn.scalar(text(f"SELECT count(*) FROM {table}")) or 0)  # noqa: S608 - a name of ours


async def test_a_session_is_read_as_it_was_written(engine: AsyncEngine) -> None:
    """The record, its strand and its messages come back equal, but for the answer to each entry."""
    closed = closed_session(7, tags=("a", "b"), trade="agent", first_response_ms=1234)
    closed = structs.replace(
        closed,
        messages=[
            *closed.messages,
            message(
                closed.session.id,
                "last",
                sequence=3,
                at_ms=NOVEMBER_MS + 8000,
                tags=("x",),
                language="pt-BR",
                intent="refund",
                sent_at_ms=NOVEMBER_MS + 7999,
                rest={"metadata": {"n": [1, None, "ü"]}},
            ),
        ],
    )
    await insert(engine, closed)

    async with engine.connect() as conn:
        found = await session_reads.find(conn, closed.session.id)
        read = await session_reads.messages_of(conn, closed.session.id, after=0, limit=100)
    assert found is not None
    assert (found.strand, found.session) == (closed.strand, closed.session)
    assert [structs.replace(one, answer=None) for one in read] == [structs.replace(one, answer=None) for one in closed.messages]


async def test_a_batch_that_is_repeated_inserts_nothing(engine: AsyncEngine) -> None:
    """A crash before the release repeats the batch: only new sessions are returned, and nothing is there twice."""
    batch = [closed_session(number) for number in range(10)]
    first = await insert(engine, *batch)
    second = await insert(engine, *batch, closed_session(10), closed_session(10))

    assert first == {closed.session.id for closed in batch}
    assert second == {closed_session(10).session.id}
    assert await count(engine, "sessions") == 11
    assert await count(engine, "messages") == 22


@pytest.mark.parametrize("portion", (1, 2, 3, 20, 1_000))
async def test_messages_are_written_in_portions(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    """However a batch falls into statements, each session has its own messages."""
    monkeypatch.setattr(sessions, "_A_PORTION", portion)
    await insert(engine, *[closed_session(number) for number in range(10)])

    async with engine.connect() as conn:
        for number in range(10):
            expected = closed_session(number)
            read = await session_reads.messages_of(conn, expected.session.id, after=0, limit=100)
            assert [one.message_id for one in read] == [one.message_id for one in expected.messages]


async def test_two_batches_go_into_one_transaction(engine: AsyncEngine) -> None:
    """Sessions staged before are not returned as new again, and an error undoes both."""
    async with engine.begin() as conn:
        first = await insert_closed(conn, [closed_session(1)])
        second = await insert_closed(conn, [closed_session(2)])

    assert (first, second) == ({closed_session(1).session.id}, {closed_session(2).session.id})
    assert await count(engine, "messages") == 4


async def test_archivists_that_write_the_same_batch_at_once_insert_it_once(engine: AsyncEngine) -> None:
    """Two workers with the same batch: exactly one of them returns a session as new."""
    batch = [closed_session(number) for number in range(200)]
    one, other = await asyncio.gather(insert(engine, *batch), insert(engine, *batch))

    assert one | other == {closed.session.id for closed in batch}
    assert not one & other
    assert await count(engine, "messages") == 400


async def test_an_archived_session_keeps_its_messages_when_more_are_offered(engine: AsyncEngine) -> None:
    """The rollback rule's question: which messages does the archive hold of a session that closed again?"""
    closed = closed_session(1, messages=2)
    await insert(engine, closed)
    again = closed_session(1, messages=4)
    inserted = await insert(engine, again)

    async with engine.connect() as conn:
        held = await existing_message_ids(conn, [again.session, closed_session(2).session])
    assert inserted == set()
    assert held == {closed.session.id: {"1-1", "1-2"}}


async def test_sessions_of_any_months_find_their_place(engine: AsyncEngine) -> None:
    """A batch that spans a year's end, and two from long ago, need no partition made by hand."""
    this_year, _ = month_of(wall_ms())
    new_year_ms = ms_of(datetime(this_year + 1, 1, 1, tzinfo=UTC))
    batch = [closed_session(at, opened_at_ms=new_year_ms - 1 + at) for at in range(2)]
    batch += [closed_session(9 + at, opened_at_ms=1_100_000_000_000 + at * 60 * 86_400_000) for at in range(2)]
    await insert(engine, *batch)

    async with engine.connect() as conn:
        found = await conn.scalars(text("SELECT tableoid::regclass::text FROM sessions ORDER BY 1"))
        names = found.all()
    assert names == ["sessions_2004", "sessions_2005", f"sessions_{this_year}_12", f"sessions_{this_year + 1}_01"]


async def test_nothing_that_a_user_types_stops_the_archive(engine: AsyncEngine) -> None:
    """NUL characters become U+FFFD wherever they stand; an escaped backslash before `u0000` stays what it is."""
    closed = closed_session(1, messages=0, intent="in\x00tent", tags=("t\x00",))
    rest = {"metadata": {"k\x00": ["\x00", {"deep": "a\x00b"}], "plain": "\\u0000"}}
    kept = message(closed.session.id, "m", sequence=1, at_ms=NOVEMBER_MS, text="a\x00b", intent="\x00", tags=("\x00",), rest=rest)
    far = message(closed.session.id, "n", sequence=2, at_ms=NOVEMBER_MS, sent_at_ms=-(10**15))
    await insert(engine, structs.replace(closed, messages=[kept, far]))

    async with engine.connect() as conn:
        found = await session_reads.find(conn, closed.session.id)
        read, _ = await session_reads.messages_of(conn, closed.session.id, after=0, limit=10)
    assert found is not None
    assert (found.session.intent, found.session.tags) == ("in\ufffdtent", ("t\ufffd",))
    assert (read.text, read.intent, read.tags) == ("a\ufffdb", "\ufffd", ("\ufffd",))
    assert read.rest == {"metadata": {"k\ufffd": ["\ufffd", {"deep": "a\ufffdb"}], "plain": "\\u0000"}}


async def test_a_walk_through_pages_meets_every_session_once(engine: AsyncEngine) -> None:
    """Sessions of one millisecond, of several months, and new ones written during the walk: no gap, no repeat."""
    batch = [closed_session(number, opened_at_ms=NOVEMBER_MS - (number // 3) * 9 * 86_400_000) for number in range(40)]
    await insert(engine, *batch)

    seen: list[str] = []
    after: SessionPlace | None = None
    while True:
        async with engine.connect() as conn:
            page = await session_reads.page(conn, SessionFilter(), after=after, limit=7)
        if not page:
            break
        seen += [archived.session.id for archived in page]
        after = SessionPlace(page[-1].session.opened_at_ms, page[-1].session.id)
        newer = [closed_session(1000 + len(seen) + at, opened_at_ms=NOVEMBER_MS + 1000 + len(seen) + at) for at in range(3)]
        await insert(engine, *newer)

    assert seen == sorted((closed.session.id for closed in batch), reverse=True)


@pytest.mark.parametrize("order", get_args(SessionOrder))
async def test_pages_of_every_order_meet_every_session_once(engine: AsyncEngine, order: SessionOrder) -> None:
    """By opening or by close, either way, also where several have the same instant."""
    batch = [
        closed_session(at, opened_at_ms=NOVEMBER_MS + at % 3 * 8 * DAY_MS, closed_at_ms=NOVEMBER_MS + (20 + at // 4) * DAY_MS)
        for at in range(20)
    ]
    await insert(engine, *batch)
    field = f"{order.removeprefix('-')}_ms"

    found: list[ArchivedSession] = []
    after: SessionPlace | None = None
    while not found or after is not None:
        async with engine.connect() as conn:
            page = await session_reads.page(conn, SessionFilter(), order=order, after=after, limit=3)
        found += page
        after = session_reads.place_of(page[-1].session, order) if len(page) == 3 else None

    expected = sorted((getattr(one.session, field), one.session.id) for one in batch)
    assert [one.session.id for one in found] == [name for _, name in (expected[::-1] if order.startswith("-") else expected)]


async def test_a_session_is_found_by_the_id_of_its_message(engine: AsyncEngine) -> None:
    """Of the bot asked for, and of several sessions the one that opened last; of late messages, too."""
    batch = [
        closed_session(1),
        closed_session(1, bot="bank"),
        closed_session(2),
        closed_session(2, opened_at_ms=NOVEMBER_MS + DAY_MS),
    ]
    await insert(engine, *batch)

    async with engine.connect() as conn:
        found = [
            await session_reads.find_by_message(conn, bot, name)
            for bot, name in (("shop", "1-2"), ("bank", "1-2"), ("shop", "2-1"), ("shop", "none"), ("other", "1-2"))
        ]
    expected = [batch[0].session.id, batch[1].session.id, batch[3].session.id, None, None]
    assert [one and one.session.id for one in found] == expected


def unlike(session: Session, name: str) -> Any:  # noqa: ANN401 - by the type of a field
    """Another value that the field may have: of a choice the next, a flag turned, a number raised."""
    value = getattr(session, name)
    kinds = [kind for kind in get_args(get_type_hints(Session)[name]) if kind is not NoneType] or [get_type_hints(Session)[name]]
    choices = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else kinds
    if isinstance(choices[0], str):
        return choices[(choices.index(value) + 1) % len(choices)]
    return {bool: not value, int: 7, str: f"other-{name}"}[choices[0]]


async def test_each_filter_finds_what_it_says(engine: AsyncEngine) -> None:
    """Two sessions that differ in everything: each filter finds the one and not the other."""
    other = closed_session(2, bot="two", opened_at_ms=NOVEMBER_MS + 10_000_000, session_metadata={"phone": "700", "number": "77"})
    by_value = {name: unlike(other.session, name) for name in session_reads.EQUAL if name in Session.__struct_fields__}
    one = closed_session(
        1,
        bot="one",
        conversation="c1",
        tags=("new", "vip"),
        session_metadata={"number": 7, "phone": "007", "known": True},
        last_bot_at_ms=NOVEMBER_MS + 61_000,
        **by_value,
    )
    async with engine.begin() as conn:
        await conn.execute(
            text(
                "INSERT INTO bots (id, name, sandbox, clock_mode) VALUES ('one', '1', true, 'manual'), ('two', '2', false, null)"
            )
        )
    await insert(engine, one, other)
    border_ms = NOVEMBER_MS + 5_000_000
    filters = [
        (SessionFilter(bots=frozenset({"one"})), one),
        (SessionFilter(bots=frozenset({"one", "three"})), one),
        *((SessionFilter(**{name: value}), one) for name, value in by_value.items()),
        (SessionFilter(user_id="user-2"), other),
        (SessionFilter(conversation_id="c1"), one),
        (SessionFilter(interactive=False), other),
        (SessionFilter(opened_from_ms=border_ms), other),
        (SessionFilter(opened_to_ms=border_ms), one),
        (SessionFilter(closed_from_ms=border_ms), other),
        (SessionFilter(closed_to_ms=border_ms), one),
        (SessionFilter(reason=frozenset({by_value["reason"], "ended"}), channel=frozenset({by_value["channel"], "help"})), one),
        (SessionFilter(outcome=frozenset({"completed", "resolved"})), other),
        (SessionFilter(tag="vip"), one),
        (SessionFilter(contained=True), other),
        (SessionFilter(sandbox=True), one),
        (SessionFilter(sandbox=False), other),
        (SessionFilter(metadata={"number": "7"}), one),
        (SessionFilter(metadata={"number": "7", "phone": "007", "known": "true"}), one),
        (SessionFilter(metadata={"phone": "700"}), other),
        (SessionFilter(active_ms_from=60_000), one),
        (SessionFilter(active_ms_to=60_000), other),
        (SessionFilter(closed_from_ms=one.session.closed_at_ms, closed_to_ms=border_ms), one),
    ]

    async with engine.connect() as conn:
        for wanted, expected in filters:
            page = await session_reads.page(conn, wanted, after=None, limit=10)
            assert [archived.session.id for archived in page] == [expected.session.id], wanted
            waiting = [ArchivedSession(each.strand, each.session, None) for each in (one, other)]
            matching = [each for each in waiting if session_reads.matches(wanted, each, sandbox=each.strand.bot == "one")]
            assert [each.session.id for each in matching] == [expected.session.id], wanted
        assert await session_reads.page(conn, SessionFilter(bots=frozenset()), after=None, limit=10) == []
    used = {name for wanted, _ in filters for name in SessionFilter.__struct_fields__ if getattr(wanted, name) is not None}
    assert used | {"text"} == set(SessionFilter.__struct_fields__)  # its test is below
    async with engine.connect() as conn:
        assert await session_reads.page(conn, SessionFilter(opened_to_ms=one.session.opened_at_ms), after=None, limit=10) == []


INDEX = re.findall(r"CREATE INDEX [^;]+words_of[^;]+", (ROOT / "docs" / "operations.md").read_text())[0]
SAID = {
    "en": "I have refunded your orders",
    "de": "Ihre Bestellungen wurden erstattet",
    "pt-BR": "Seus pedidos foram reembolsados",
    None: "refunded",
}
SEARCHES = {
    "order refund": {"en"},
    "bestellung": {"de"},
    "reembolsado -cancelado": {"pt-BR"},
    "refund": {"en"},  # without a language a word is compared as it is
    "refunded": {"en", None},
    '"refunded your orders"': {"en"},
    '"orders refunded"': set[str | None](),
    "bestellung or pedido": {"de", "pt-BR"},
    "& | !( '": set[str | None](),
}


@pytest.mark.parametrize("indexed", (False, True))
async def test_a_search_finds_sessions_by_the_words_of_their_messages(engine: AsyncEngine, *, indexed: bool) -> None:
    """In the forms of the session's language, with the index and without; a late message counts, another session's does not."""
    batch = [
        structs.replace(one, messages=[*one.messages, message(one.session.id, "said", sequence=3, at_ms=NOVEMBER_MS, text=said)])
        for number, (language, said) in enumerate(SAID.items())
        for one in [closed_session(number, language=language)]
    ]
    async with engine.begin() as conn:
        if indexed:
            await conn.execute(text(INDEX))
        await insert_closed(conn, batch)
    async with engine.connect() as conn:
        await conn.execute(text("SET enable_seqscan = off"))
        plan = "\n".join(await conn.scalars(text("EXPLAIN SELECT FROM messages WHERE words_of(session_language, text) @@ 'a'")))
        assert ("Bitmap Index Scan" in plan) == indexed
        for asked, languages in SEARCHES.items():
            page = await session_reads.page(conn, SessionFilter(text=asked), after=None, limit=10)
            assert {one.session.language for one in page} == languages, asked
        waiting = ArchivedSession(batch[0].strand, batch[0].session, None)
        assert not session_reads.matches(SessionFilter(text="refunded"), waiting, sandbox=False)


async def test_a_page_of_a_list_reads_only_the_months_it_shows(engine: AsyncEngine) -> None:
    """By the plan of the first page of a bot: an index gives the order, and nothing is sorted."""
    await insert(engine, *(closed_session(number, opened_at_ms=NOVEMBER_MS - number * 86_400_000) for number in range(90)))

    async with engine.connect() as conn:
        await conn.execute(text("SET enable_seqscan = off"))
        plan = await conn.scalars(
            text(
                "EXPLAIN SELECT id FROM sessions WHERE bot_id = 'shop' AND opened_at <= '2026-10-01' "
                "ORDER BY opened_at DESC, id DESC LIMIT 5"
            )
        )
        lines = "\n".join(plan)
    assert "Sort" not in lines
    assert "sessions_2026_11" not in lines
    assert "bot_id_opened_at_id_idx" in lines


async def test_an_id_of_no_session_is_found_nowhere(engine: AsyncEngine) -> None:
    """An id of a month that has no partition, and one whose time lies beyond the calendar."""
    async with engine.connect() as conn:
        for unknown in ("00000000-0000-7000-8000-000000000000", "ffffffff-ffff-7fff-bfff-ffffffffffff"):
            assert opened_at_ms_of(unknown) >= 0
            assert await session_reads.find(conn, unknown) is None
            assert await session_reads.messages_of(conn, unknown, after=0, limit=1) == []
