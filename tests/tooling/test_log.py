"""The log of a process: its fields, and the secrets that it never shows."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from app.log import configure_logging, redacted
from app.settings import Settings


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_json_lines_carry_time_level_process_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line, the time in UTC."""
    configure_logging(Settings(log_format="json", process_name="worker"))
    structlog.get_logger("app.sweep").info("swept", closed=3)
    line = json.loads(capsys.readouterr().err)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line.pop("timestamp"))
    assert line == {"event": "swept", "closed": 3, "level": "info", "logger": "app.sweep", "process": "worker"}


@pytest.mark.parametrize(
    ("field", "value"),
    (
        ("authorization", "Bearer sesame"),
        ("signing_secret", "sesame"),
        ("headers", {"Authorization": "sesame"}),
        ("url", "postgresql://adjourn:sesame@db/adjourn"),
        ("detail", "refused: Authorization: Bearer sesame"),
        ("secrets", ["sesame"]),
        ("created", "adj_0123456789-0123456789_sesame"),
        ("text", "the secret is whsec_sesame"),
    ),
)
@pytest.mark.parametrize("form", ("json", "console"))
def test_secrets_are_blacked_out(capsys: pytest.CaptureFixture[str], form: str, field: str, value: object) -> None:
    """Neither a field's name nor a text's shape lets a secret through."""
    configure_logging(Settings(log_format="json" if form == "json" else "console"))
    structlog.get_logger().info("event", **{field: value})
    line = capsys.readouterr().err

    assert "event" in line
    assert "sesame" not in line


def test_a_url_without_a_password_stays_whole() -> None:
    """A port is no password."""
    assert redacted("see http://127.0.0.1:9000/hook, b@c") == "see http://127.0.0.1:9000/hook, b@c"


def test_lines_of_libraries_have_the_same_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """Uvicorn's lines are folded in, formatted and redacted."""
    configure_logging(Settings(log_format="json"))
    logging.getLogger("uvicorn.error").warning("refused %s", "Bearer sesame", extra={"color_message": "x"})
    line = json.loads(capsys.readouterr().err)

    assert (line["event"], line["level"], line["logger"]) == ("refused Bearer [redacted]", "warning", "uvicorn.error")
    assert "color_message" not in line


def test_a_level_silences_what_is_below(capsys: pytest.CaptureFixture[str]) -> None:
    """At WARNING, information is left out."""
    configure_logging(Settings(log_level="WARNING"))
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")

    assert "quiet" not in (logged := capsys.readouterr().err)
    assert "loud" in logged


def test_a_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """A local that holds a secret stays out of the trace, in either format."""
    for form in ("json", "console"):
        configure_logging(Settings(log_format="json" if form == "json" else "console"))
        try:
            hidden = "sesame".upper()
            _ = 1 / (len(hidden) - 6)
        except ZeroDivisionError:
            structlog.get_logger().exception("failed")

    assert "ZeroDivisionError" in (logged := capsys.readouterr().err)
    assert "SESAME" not in logged
