"""The replay by itself: reading, batching, pacing, trying again. The API is a receiver with scripted answers."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from app.replay import (
    BATCH_BYTES,
    EntryLine,
    Pace,
    Poster,
    ReplayStopped,
    Tally,
    api_client,
    batches_of,
    lines_of,
    open_source,
    replay,
)
from tests.receiver import Behaviour, Exchange, Received, Receiver, busy, hang_up, in_turn, reply

PATH = "/v1/bots/b/messages/batch"


def test_an_entry_without_an_id_gets_one_from_its_place_in_the_file() -> None:
    """Replaying the same file again sends the same ids, so nothing is counted twice."""
    text = b'{"user_id":"u","role":"user"}\n\n{"message_id":"own","user_id":"u","role":"user"}\n'

    first, second = list(lines_of(io.BytesIO(text), name="day.ndjson")), list(lines_of(io.BytesIO(text), name="day.ndjson"))

    assert [msgspec.json.decode(line.body)["message_id"] for line in first] == ["day.ndjson:1", "own"]
    assert first == second


def test_a_byte_order_mark_belongs_to_no_line() -> None:
    """Windows begins files with one; a file so written replays like any other."""
    assert list(lines_of([b'\xef\xbb\xbf{"message_id":"1"}\n'], name="f")) == [EntryLine(1, b'{"message_id":"1"}')]


def test_a_line_that_is_no_entry_goes_to_the_api_as_it_is() -> None:
    """The API refuses it in its place, and its neighbours are taken."""
    lines = list(lines_of(io.BytesIO(b'nonsense\n{"message_id":7}\n\xff\n'), name="x"))

    assert [line.body for line in lines] == [b"nonsense", b'{"message_id":7}', b"\xff"]


@pytest.mark.parametrize("pack", (bytes, gzip.compress), ids=("plain", "gzipped"))
def test_a_file_is_read_gzipped_or_not_whatever_its_name(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """The first bytes count, not the name."""
    path = tmp_path / "entries"
    path.write_bytes(pack(b'{"message_id":"1","sent_at":"2026-01-01T00:00:00.250Z"}\n'))

    with open_source(str(path)) as source:
        lines = list(source.lines())
        position = source.position()

    assert lines == [EntryLine(1, b'{"message_id":"1","sent_at":"2026-01-01T00:00:00.250Z"}', 1_767_225_600_250)]
    assert position == source.size


async def test_batches_hold_as_much_as_the_api_takes() -> None:
    """500 entries or 1 MB, whichever comes first, and nothing is left out."""
    many = [EntryLine(number, b"{}") for number in range(1, 1202)]
    large = [EntryLine(number, b"x" * 400_000) for number in range(1, 6)]

    by_count = [batch async for batch in batches_of(many, most=500, pace=Pace(0))]
    by_size = [batch async for batch in batches_of(large, most=500, pace=Pace(0))]

    assert [len(batch) for batch in by_count] == [500, 500, 201]
    assert [len(batch) for batch in by_size] == [2, 2, 1]
    assert [line for batch in by_count for line in batch] == many
    assert all(sum(len(line.body) + 1 for line in batch) <= BATCH_BYTES for batch in by_size)


def test_speed_divides_the_time_between_entries() -> None:
    """At 60 times real time, an entry of a minute later is due a second later; one without `sent_at` is due at once."""
    now = [1_000.0]
    pace = Pace(60, now_ms=lambda: now[0])
    first, later, unknown = EntryLine(1, b"", 500_000), EntryLine(2, b"", 560_000), EntryLine(3, b"")

    waits = [pace.wait_s(first), pace.wait_s(later), pace.wait_s(unknown)]
    now[0] += 400
    then = pace.wait_s(later)

    assert waits == [0.0, 1.0, 0.0]
    assert then == pytest.approx(0.6)


def test_without_a_speed_nothing_waits() -> None:
    """As fast as the API answers."""
    pace = Pace(0)

    assert [pace.wait_s(EntryLine(1, b"", 0)), pace.wait_s(EntryLine(2, b"", 10**12))] == [0.0, 0.0]


async def test_a_batch_goes_out_before_the_first_entry_that_is_not_due() -> None:
    """An entry never waits for one that is sent later."""
    lines = [EntryLine(1, b"a", 0), EntryLine(2, b"b", 0), EntryLine(3, b"c", 100)]

    batches = [[line.number for line in batch] async for batch in batches_of(lines, most=500, pace=Pace(4))]

    assert batches == [[1, 2], [3]]


def _api(answer: Callable[[int, str], dict[str, object]]) -> Behaviour:
    """Answer each entry of a batch; `answer` gets the number of the request and the entry's message id."""

    async def behave(exchange: Exchange) -> None:
        ids = _ids(exchange.request)
        body = msgspec.json.encode({"answers": [answer(exchange.request.number, message_id) for message_id in ids]})
        await reply(200, body)(exchange)

    return behave


def _ids(request: Received) -> list[str]:
    return [msgspec.json.decode(line)["message_id"] for line in request.body.split(b"\n")]


def _lines(count: int) -> list[EntryLine]:
    return list(lines_of([b'{"user_id":"u","role":"user"}'] * count, name="f"))


def _opened(_number: int, message_id: str) -> dict[str, object]:
    return {"message_id": message_id, "session": "opened"}


async def _replay(receiver: Receiver, lines: list[EntryLine], *, patience_s: float = 20.0) -> Tally:
    async with api_client(receiver.url(""), "key") as client:
        return await replay(lines, poster=Poster(client, bot="b", patience_s=patience_s), most=3)


async def test_a_503_and_a_lost_connection_are_tried_again_with_the_same_ids() -> None:
    """Nothing is skipped and nothing is renamed: the API recognises what it has already."""
    with Receiver() as receiver:
        receiver.behave(PATH, in_turn(busy("0"), hang_up(), _api(_opened)))

        tally = await _replay(receiver, _lines(2))

        assert [_ids(request) for request in receiver.at(PATH)] == [["f:1", "f:2"]] * 3
    assert (tally.entries, tally.opened, tally.refused, tally.retries) == (2, 2, 0, 2)


async def test_only_entries_that_redis_did_not_take_are_posted_again() -> None:
    """Lines with an answer keep it, whatever happens to the others."""

    def answer(number: int, message_id: str) -> dict[str, object]:
        if number == 1 and message_id == "f:2":
            return {"error": {"status": 503, "detail": "not now"}}
        return {"session": "opened"}

    with Receiver() as receiver:
        receiver.behave(PATH, _api(answer))

        tally = await _replay(receiver, _lines(3))

        assert [_ids(request) for request in receiver.at(PATH)] == [["f:1", "f:2", "f:3"], ["f:2"]]
    assert (tally.entries, tally.opened, tally.refused) == (3, 3, 0)


async def test_a_duplicate_after_a_lost_answer_counts_as_the_entry_that_it_is() -> None:
    """A repeat of this replay's own making is no duplicate; one of an earlier replay is, and opens nothing."""

    def repeated(_number: int, _message_id: str) -> dict[str, object]:
        return {"session": "opened", "duplicate": True}

    with Receiver() as receiver:
        receiver.behave(PATH, in_turn(hang_up(), _api(repeated)))

        tally = await _replay(receiver, _lines(4))

    assert (tally.entries, tally.opened, tally.duplicates) == (4, 3, 1)


async def test_refused_entries_are_counted_and_named_by_line() -> None:
    """A refused line is reported with its faults, and does not stop the others."""

    def answer(_number: int, message_id: str) -> dict[str, object]:
        if message_id != "f:2":
            return {"session": "continued"}
        faults = [{"where": "role", "what": "it is required", "hint": "one of …"}]
        return {"error": {"status": 422, "detail": "the entry cannot be read", "errors": faults}}

    with Receiver() as receiver:
        receiver.behave(PATH, _api(answer))

        tally = await _replay(receiver, _lines(4))

    assert (tally.entries, tally.refused, tally.refusals) == (4, 1, [(2, "the entry cannot be read (role: it is required)")])


@pytest.mark.parametrize(
    ("behaviour", "words"),
    (
        (reply(401, b'{"status":401,"title":"No valid API key","detail":"no such key"}'), "line 1: no such key"),
        (reply(404, b"<html>"), "line 1: answered 404"),
        (busy("1"), "line 1: no answer for 0.5 s"),
    ),
    ids=("wrong key", "no problem details", "always busy"),
)
async def test_a_replay_that_cannot_go_on_says_at_which_line(behaviour: Behaviour, words: str) -> None:
    """A wrong key or an API that stays down ends it, with the place to go on from."""
    with Receiver() as receiver:
        receiver.behave(PATH, behaviour)

        with pytest.raises(ReplayStopped, match=words):
            await _replay(receiver, _lines(4), patience_s=0.5)
