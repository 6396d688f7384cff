"""A reply is read within bounds, and no content of it can break anything."""

import pytest

from app.delivery.sender import plain, retry_after_s

NOW_MS = 1_795_219_200_000  # 2026-11-21T00:00:00Z


@pytest.mark.parametrize(
    ("header", "wait_s"),
    (
        (None, None),
        ("", None),
        ("0", 0),
        (" 120 ", 120),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("9" * 5000, 9_999_999_999),
        ("Sat, 21 Nov 2026 00:01:30 GMT", 90),
        ("Sat, 21 Nov 2026 00:01:30 -0000", 90),
        ("Fri, 20 Nov 2026 23:00:00 GMT", 0),
        ("Sat, 21 Nov 2026 99:99:99 GMT", None),
        ("Sat, 21 Nov 99999 00:00:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ),
)
def test_retry_after(header: str | None, wait_s: int | None) -> None:
    """Seconds, a date, or nothing that can be relied on."""
    assert retry_after_s(header, now_ms=NOW_MS) == wait_s


def test_text_that_postgres_refuses_is_replaced() -> None:
    """NUL and halves of surrogate pairs would make the whole record fail."""
    assert plain("a\x00b\ud800c") == "a\ufffdb?c"
