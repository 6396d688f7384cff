"""Instants as they are written, and texts in a user's language."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.domain.instants import ms_of, rfc3339, rfc3339_or_none
from app.domain.policy.model import filled, text_in
from tests.domain.talk import NOON_MS


def test_instants() -> None:
    """Whole milliseconds, UTC."""
    assert rfc3339(NOON_MS + 7) == "2026-11-21T12:00:00.007Z"
    assert rfc3339_or_none(None) is None
    assert rfc3339_or_none(0) == "1970-01-01T00:00:00.000Z"
    assert ms_of(datetime(2026, 11, 21, 12, 0, 0, 7_999, tzinfo=UTC)) == NOON_MS + 7


def test_no_instant_is_beyond_telling() -> None:
    """An offset can put a time that was read outside the calendar: it becomes the calendar's end, in four digits of year."""
    west, east = timezone(timedelta(hours=-14)), timezone(timedelta(hours=14))

    assert rfc3339(ms_of(datetime(9999, 12, 31, 23, 59, 59, tzinfo=west))) == "9999-12-31T23:59:59.999Z"
    assert rfc3339(ms_of(datetime(1, 1, 1, tzinfo=east))) == "0001-01-01T00:00:00.000Z"
    assert rfc3339(ms_of(datetime(1, 1, 1, tzinfo=UTC)) + 1) == "0001-01-01T00:00:00.001Z"


def test_instants_are_utc_wherever_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time zone of a process changes nothing."""
    monkeypatch.setenv("TZ", "America/Sao_Paulo")
    time.tzset()

    assert rfc3339(NOON_MS) == "2026-11-21T12:00:00.000Z"
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("language", "tag"),
    (
        ("pt-BR", "pt-BR"),
        ("PT-br", "pt-BR"),
        ("pt_BR", "pt-BR"),
        ("pt-BR-x-rio", "pt-BR"),
        ("pt-PT", "pt"),
        ("pt", "pt"),
        ("en", "default"),
        (None, "default"),
        ("", "default"),
    ),
)
def test_text_in_a_language(language: str | None, tag: str) -> None:
    """Ever more general, then the default."""
    texts = {"default": "d", "pt": "p", "pt-BR": "b"}

    assert text_in(texts, language) == (tag, texts[tag])


def test_placeholders_are_filled_once() -> None:
    """A value is never read as a placeholder, and text in braces that is no placeholder stays."""
    assert filled("{a} {b} {c} {", {"a": "{b}", "b": "2"}) == "{b} 2 {c} {"
