"""Turns values into pages: the templates, the ways in which they show values, and the headers that hold a page to this server."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse

from app.console.forms import entered

HERE = Path(__file__).parent
STATIC = HERE / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""The content security policy of each page: everything comes from this server, and nothing is inline."""

_HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
_NAME = re.compile(r"`([^`]+)`")
_SECOND_MS = 1000
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", _SECOND_MS))


def duration(ms: int | None) -> str:
    """A length of time in its two largest units: `2 min 5 s`."""
    if ms is None:
        return "-"
    if 0 < ms < _SECOND_MS:
        return f"{ms} ms"
    parts = []
    for unit, length in _UNITS:
        count, ms = divmod(ms, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def parse(at: str) -> datetime:
    """An instant as the API writes it."""
    return datetime.fromisoformat(at)


def clock_time(at: str | None) -> str:
    """An instant for people, to the second, in UTC."""
    return "-" if at is None else parse(at).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def pretty(value: object) -> str:
    """Any JSON with indentation."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def with_code(text: str) -> Markup:
    """A sentence of the API, its names between backticks as code."""
    return Markup(_NAME.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped here


def compact(value: object) -> str:
    """Any JSON in one line."""
    return msgspec.json.encode(value).decode()


def with_query(query: list[tuple[str, str]], **changes: str | None) -> str:
    """A query with some parameters replaced, or with None removed."""
    kept = [(name, value) for name, value in query if name not in changes]
    return "?" + urlencode(kept + [(name, value) for name, value in changes.items() if value is not None])


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"duration": duration, "clock": clock_time, "pretty": pretty, "compact": compact, "with_code": with_code}
    made.globals |= {"with_query": with_query, "entered": entered}
    return made


_TEMPLATES = _environment()


def html(template: str, values: Mapping[str, Any], *, status: int = 200) -> HTMLResponse:
    """A page. Its values are escaped."""
    return HTMLResponse(_TEMPLATES.get_template(template).render(values), status_code=status, headers=_HEADERS)
