"""`adjourn export` against a server that cuts every answer: the file is the export, whatever was cut, and by whom."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from app.errors import CannotStart
from app.export import Export, Rows, run
from app.queries.exports import COLUMNS

SESSIONS = [b'{"id":"%d","text":"=1, \\"2\\""}\n' % number for number in range(50)]
HEAD = (",".join(COLUMNS["messages"]) + "\n").encode()
MESSAGES = [b's%d,shop,m,%d,false,"two ""lines""\r\nand more"\n' % (number, number) for number in range(50)]
AS_NDJSON, AS_CSV = Export("sessions", "ndjson", {"bot": "shop"}), Export("messages", "csv", {})
BOTH = pytest.mark.parametrize(
    ("export", "rows", "head"), ((AS_NDJSON, SESSIONS, b""), (AS_CSV, MESSAGES, HEAD)), ids=("sessions", "messages")
)


@contextmanager
def server(export: Export, rows: list[bytes], head: bytes, *, cuts: list[int], status: int = 200) -> Iterator[str]:
    """Answer what is left after `after`; the connection of each answer is cut after so many bytes, once `cuts` says none not."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            assert asked["format"] == [export.form]
            after = asked.get("after", [None])[0]
            body = b"".join(rows[_count(export, rows, after) :])
            body = body if after else head + body
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: cuts.pop(0)] if cuts else body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def _count(export: Export, rows: list[bytes], after: str | None) -> int:
    return 0 if after is None else [export.place_of(row) for row in rows].index(after) + 1


@BOTH
def test_a_connection_that_is_cut_is_taken_up(tmp_path: Path, export: Export, rows: list[bytes], head: bytes) -> None:
    """Before the head, within it, within a row, between two."""
    output = tmp_path / "out"
    with server(export, rows, head, cuts=[0, 3, len(head) + 1, len(head + rows[0]), 333]) as url:
        run(export, output, url=url, key=None, resume=False)

    assert output.read_bytes() == head + b"".join(rows)


@BOTH
def test_a_run_that_was_killed_is_resumed(tmp_path: Path, export: Export, rows: list[bytes], head: bytes) -> None:
    """A file that ends in half a row, half a head or nothing is completed."""
    output = tmp_path / "out"
    whole = head + b"".join(rows)
    with server(export, rows, head, cuts=[]) as url:
        for size in (0, 5, len(head), len(head) + 7, len(head + rows[0]), len(whole) // 2, len(whole) - 1, len(whole)):
            output.write_bytes(whole[:size])
            run(export, output, url=url, key=None, resume=True)
            assert output.read_bytes() == whole


@BOTH
def test_rows_are_cut_wherever_the_pieces_are(export: Export, rows: list[bytes], head: bytes) -> None:
    whole = head + b"".join(rows)
    for size in (1, 2, 3, 7, 100, len(whole)):
        cutter = Rows(export)
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [row for piece in pieces for row in cutter.whole(piece)] == ([head] if head else []) + rows


def test_parquet_that_is_cut_is_begun_anew(tmp_path: Path) -> None:
    """Its bytes are those of the last answer alone, line feeds within them are none of rows, and it is never resumed."""
    export = Export("sessions", "parquet", {"bot": "shop"})
    output, body = tmp_path / "out", [b'PAR1\n\x00\r\n"', b"\n\nPAR1"]
    with server(export, body, b"", cuts=[0, 3, 9]) as url:
        run(export, output, url=url, key=None, resume=False)

    assert output.read_bytes() == b"".join(body)
    with pytest.raises(CannotStart, match="cannot be resumed"):
        run(export, output, url="http://127.0.0.1:9", key=None, resume=True)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    """It is written over by no run, and resumed only if it is asked for."""
    output = tmp_path / "out"
    output.write_text("precious")
    with server(AS_NDJSON, SESSIONS, b"", cuts=[]) as url, pytest.raises(CannotStart, match="exists"):
        run(AS_NDJSON, output, url=url, key=None, resume=False)

    assert output.read_text() == "precious"


def test_a_file_that_is_no_export_is_not_resumed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("precious\n")
    with server(AS_NDJSON, SESSIONS, b"", cuts=[]) as url, pytest.raises(CannotStart, match="no export"):
        run(AS_NDJSON, output, url=url, key=None, resume=True)


def test_a_refusal_ends_it_in_one_line(tmp_path: Path) -> None:
    with server(AS_NDJSON, SESSIONS, b"", cuts=[], status=403) as url, pytest.raises(CannotStart, match="403"):
        run(AS_NDJSON, tmp_path / "out", url=url, key=None, resume=False)
