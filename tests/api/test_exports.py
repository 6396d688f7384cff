"""Exports: every row once, in CSV, NDJSON and Parquet, the same bytes however often they are cut and resumed."""

import csv
import gzip
import io
import sys
from datetime import datetime
from random import Random
from typing import Any

import pyarrow.parquet
import pytest
from msgspec import json, structs

from app.archive.sessions import ClosedSession, insert_closed
from app.resources import Resources
from tests.analytics.history import history
from tests.api.conftest import Client, ClientMaker, Json
from tests.closed import message

SESSIONS, MESSAGES = "/v1/exports/sessions", "/v1/exports/messages"


@pytest.fixture
async def archived(admin: Client, resources: Resources, monkeypatch: pytest.MonkeyPatch) -> list[ClosedSession]:
    """Sessions in the order of their opening, one of them long, over several pages of both kinds."""
    monkeypatch.setattr("app.queries.exports._SESSIONS_A_PAGE", 7)
    monkeypatch.setattr("app.queries.exports._MESSAGES_A_PAGE", 10)
    for bot in ("shop", "bank"):
        await admin.ok("POST", "/v1/bots", {"id": bot})
    random = Random(3)  # noqa: S311 - the same sessions each time
    made = [with_messages(one, 35 if number == 20 else random.randrange(1, 6)) for number, one in enumerate(history(random, 60))]
    async with resources.engine.begin() as conn:
        await insert_closed(conn, made)
    return sorted(made, key=lambda one: (one.session.opened_at_ms, one.session.id))


def with_messages(one: ClosedSession, count: int) -> ClosedSession:
    session = structs.replace(one.session, entries=count)
    said = [
        message(
            session.id, f"m{at}", sequence=at, at_ms=session.opened_at_ms + at, text='=1+1, "ü"\n', rest={"metadata": {"n": at}}
        )
        for at in range(1, count + 1)
    ]
    return structs.replace(one, session=session, messages=said)


async def lines(client: Client, path: str, **asked: str) -> list[Json]:
    reply = await client.get(path, params=asked)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-ndjson"
    return [json.decode(line) for line in reply.content.splitlines()]


async def test_every_session_is_a_line_as_it_is_in_the_api(admin: Client, archived: list[ClosedSession]) -> None:
    """All fields, the first opened first."""
    found = await lines(admin, SESSIONS)

    assert [one["id"] for one in found] == [one.session.id for one in archived]
    for one in (found[0], found[-1]):
        assert one == await admin.ok("GET", f"/v1/sessions/{one['id']}")


async def test_every_message_is_a_line(admin: Client, archived: list[ClosedSession]) -> None:
    """Session by session, in their order; a long session over several pages, too."""
    found = await lines(admin, MESSAGES)

    expected = [(one.session.id, said.sequence) for one in archived for said in one.messages]
    assert [(one["session_id"], one["sequence"]) for one in found] == expected
    assert found[0]["metadata"] == {"n": 1}
    assert {one["bot"] for one in found} == {"shop", "bank"}


@pytest.mark.parametrize("form", ("csv", "ndjson"))
@pytest.mark.parametrize("path", (SESSIONS, MESSAGES))
async def test_a_cut_export_goes_on_with_the_same_bytes(
    admin: Client, archived: list[ClosedSession], path: str, form: str
) -> None:
    """Cut after each row in turn: what was there and what follows are the whole."""
    whole = (await admin.get(path, params={"format": form})).content
    rows = await lines(admin, path)
    places = [row["id"] if path == SESSIONS else f"{row['session_id']}:{row['sequence']}" for row in rows]

    assert archived
    for place in [places[0], *places[1::9], places[-1]]:
        rest = (await admin.get(path, params={"format": form, "after": place})).content
        count = places.index(place) + 1
        remaining = len(rows) - count
        assert whole.endswith(rest)
        assert len(table(rest, head=False) if form == "csv" else rest.splitlines()) == remaining, place


def table(content: bytes, *, head: bool = True) -> list[Any]:
    text = io.StringIO(content.decode(), newline="")
    return list(csv.DictReader(text) if head else csv.reader(text))


async def test_csv_holds_what_ndjson_holds(admin: Client, archived: list[ClosedSession]) -> None:
    """Every field in a column: objects of roles as one each, others as JSON; the fields few messages have in `rest`."""
    sessions, messages = await lines(admin, SESSIONS), await lines(admin, MESSAGES)
    session_rows = table((await admin.get(SESSIONS, params={"format": "csv"})).content)
    message_rows = table((await admin.get(MESSAGES, params={"format": "csv"})).content)

    assert len(session_rows) == len(archived)
    for row, one in zip(session_rows, sessions, strict=True):
        assert row["id"] == one["id"]
        assert row["entries_of_user"] == str(one["entries_of"]["user"])
        assert row["tags"] == json.encode(one["tags"]).decode()
        assert row["interactive"] == str(one["interactive"]).lower()
        assert row["intent"] == (one["intent"] or "")
    for row, said in zip(message_rows, messages, strict=True):
        assert row["text"] == said["text"]
        assert json.decode(row["rest"]) == {"metadata": said["metadata"]}


async def test_gzip_is_the_same_bytes(admin: Client, archived: list[ClosedSession]) -> None:
    """Only for clients that take it."""
    plain = await admin.get(SESSIONS, headers={"accept-encoding": "identity"})
    async with admin.stream("GET", SESSIONS, headers={"accept-encoding": "gzip"}) as reply:
        packed = b"".join([piece async for piece in reply.aiter_raw()])

    assert archived
    assert "content-encoding" not in plain.headers
    assert reply.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == plain.content
    assert len(packed) < len(plain.content) / 3


async def test_filters_are_those_of_the_list(admin: Client, archived: list[ClosedSession]) -> None:
    found = await lines(admin, SESSIONS, bot="shop", channel="web", interactive="true")
    messages = await lines(admin, MESSAGES, bot="shop", channel="web", interactive="true")

    expected = [one for one in archived if one.strand.bot == "shop" and one.session.channel == "web" and one.session.interactive]
    assert [one["id"] for one in found] == [one.session.id for one in expected]
    assert len(messages) == sum(len(one.messages) for one in expected)


async def test_a_place_gives_nothing_that_the_key_does_not_cover(clients: ClientMaker, archived: list[ClosedSession]) -> None:
    """A place within another tenant's session is only a place in the order."""
    reader = await clients("read", bots=["shop"])
    foreign = next(one for one in archived if one.strand.bot == "bank" and len(one.messages) > 1)
    found = await lines(reader, MESSAGES, after=f"{foreign.session.id}:1")

    assert {one["bot"] for one in found} <= {"shop"}


@pytest.mark.parametrize(
    ("path", "after"),
    ((SESSIONS, "x"), (SESSIONS, "01a1fd8c-6900-7dff-8007-b98ca63b51ae:1"), (MESSAGES, "01a1fd8c-6900-7dff-8007-b98ca63b51ae"),
     (MESSAGES, "01a1fd8c-6900-7dff-8007-b98ca63b51ae:x"), (SESSIONS, ""),
     (MESSAGES, "01a1fd8c-6900-7dff-8007-b98ca63b51ae:99999999999999999999")),
)  # fmt: skip
async def test_a_place_that_is_none_is_refused(admin: Client, path: str, after: str) -> None:
    assert (await admin.refused("GET", path, params={"after": after}))["status"] == 422


async def test_nothing_is_an_export_too(admin: Client) -> None:
    """No line, or the head alone."""
    assert await lines(admin, SESSIONS) == []
    assert len((await admin.get(MESSAGES, params={"format": "csv"})).content.splitlines()) == 1


async def test_large_answers_are_compressed_for_those_who_take_gzip(admin: Client) -> None:
    """Small ones are not, nor is anything for a client that does not ask for it; an export is compressed once."""
    taking, not_taking = {"accept-encoding": "gzip"}, {"accept-encoding": "identity"}
    large = await admin.get("/v1/analytics/definitions", headers=taking)
    plain = await admin.get("/v1/analytics/definitions", headers=not_taking)
    small = await admin.get("/v1/bots", headers=taking)
    export = await admin.get("/v1/exports/sessions?format=csv", headers=taking)

    assert large.headers["content-encoding"] == "gzip"
    assert int(large.headers["content-length"]) < len(large.content) / 2
    assert "accept-encoding" in large.headers["vary"].lower()
    assert "content-encoding" not in plain.headers
    assert plain.json() == large.json()
    assert "content-encoding" not in small.headers
    assert export.text.startswith("id,bot,")


async def parquet(client: Client, path: str, **asked: str) -> pyarrow.Table:
    reply = await client.get(path, params={"format": "parquet", **asked})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/vnd.apache.parquet"
    return pyarrow.parquet.read_table(io.BytesIO(reply.content))


@pytest.mark.parametrize("path", (SESSIONS, MESSAGES))
async def test_parquet_holds_what_ndjson_holds(
    admin: Client, archived: list[ClosedSession], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row over several row groups: instants and numbers by their types, objects as JSON."""
    monkeypatch.setattr("app.queries.exports._GROUP_ROWS", 25)
    expected = await lines(admin, path)
    found = await parquet(admin, path)

    assert archived
    assert found.num_rows == len(expected)
    for row, one in zip(found.to_pylist(), expected, strict=True):
        for name, value in row.items():
            assert as_json(value) == in_column(one, name), name


def as_json(value: object) -> object:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%S.") + f"{value.microsecond // 1000:03}Z"
    return value


def in_column(one: Json, name: str) -> object:
    if name == "rest":
        return json.encode({"metadata": one["metadata"]}).decode()
    whole, of, role = name.partition("_of_")
    value = one[f"{whole}_of"][role] if of else one[name]
    return json.encode(value).decode() if isinstance(value, dict) else value


async def test_parquet_knows_the_types_of_its_columns(admin: Client, archived: list[ClosedSession]) -> None:
    """The types that SQL needs; a column of nothing but nulls has one, too."""
    sessions, messages = await parquet(admin, SESSIONS), await parquet(admin, MESSAGES)

    assert archived
    for name in ("opened_at", "reminded_at", "first_entry_at_of_agent"):
        assert str(sessions.schema.field(name).type) == "timestamp[ms, tz=UTC]", name
    for name in ("entries", "entries_of_user", "active_ms", "first_response_ms"):
        assert str(sessions.schema.field(name).type) == "int64", name
    assert str(sessions.schema.field("interactive").type) == "bool"
    assert str(sessions.schema.field("intents").type).startswith("list<")
    assert str(messages.schema.field("late").type) == "bool"
    assert str(messages.schema.field("rest").type) == "string"


async def test_parquet_goes_on_after_a_place_as_a_file_of_its_own(admin: Client, archived: list[ClosedSession]) -> None:
    """The rest of the rows; none at all is a file, too."""
    places = [one.session.id for one in archived]

    assert (await parquet(admin, SESSIONS, after=places[20])).column("id").to_pylist() == places[21:]
    assert (await parquet(admin, SESSIONS, after=places[-1])).num_rows == 0


async def test_parquet_without_its_extra_is_refused(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A problem that names what to install; other formats need nothing."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    problem = await admin.refused("GET", SESSIONS, params={"format": "parquet"})

    assert problem["status"] == 422
    assert "adjourn[parquet]" in problem["errors"][0]["hint"]
    assert await lines(admin, SESSIONS) == []


async def test_no_cell_is_a_formula_where_a_spreadsheet_reads_it(admin: Client, archived: list[ClosedSession]) -> None:
    """A user's text would run as one in the program of an admin who opens the file; other programs get the text as it is."""
    said = archived[0].messages[0].text
    rows = {
        wanted: table((await admin.get(MESSAGES, params={"format": "csv", "spreadsheet": wanted})).content)
        for wanted in ("false", "true")
    }

    assert rows["false"][0]["text"] == said
    assert rows["true"][0]["text"] == f"'{said}"
    assert rows["true"][0]["session_id"] == rows["false"][0]["session_id"]
