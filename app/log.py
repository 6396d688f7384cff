"""Logging: one structured line an event on stderr, for people or as JSON, with secrets redacted.

Modules log with `structlog.get_logger()` and configure nothing; entry points call `configure_logging`. Events are short plain
texts in lower case with fields beside them. Lines of libraries that use `logging` (uvicorn, APScheduler, Alembic) have the same
shape.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app import VERSION
from app.settings import Settings

REDACTED = "[redacted]"
_SECRET_NAMES = re.compile(r"authorization|secret|password|passwd|token|api_?key|cookie|signature", re.IGNORECASE)
# An API key, a webhook's secret, an Authorization header, the password in a URL, anywhere in a text.
_SECRET_TEXTS = re.compile(
    r"(?P<scheme>bearer\s+|basic\s+)[^\s@,'\"]+|(?P<user>://[^\s:/@]*:)[^\s@,'\"]+(?=@)|whsec_\S+|\badj_[\w-]{20,}", re.IGNORECASE
)
# Only warnings of these: their other lines repeat what is logged here.
_CHATTY = ("httpx", "httpcore", "apscheduler", "alembic", "asyncio", "uvicorn.error")

# The scheduler warns, four times a second, of a job that still runs at its next tick; only its errors are logged.
_EXPECTED = ("apscheduler.scheduler",)


def configure_logging(settings: Settings) -> None:
    """Send this process's log to stderr, as the settings say; may be called again."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _naming(settings.process_name),
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    _take_over_root(settings.log_level, foreign=shared, renderer=_renderer(settings.log_format))


@contextmanager
def logged_life(settings: Settings) -> Iterator[None]:
    """Log the start of a process, with its version and the settings that were chosen, and its stop."""
    log = structlog.get_logger(__name__)
    log.info("process started", version=VERSION, pid=os.getpid(), **{name: str(value) for name, value in settings.chosen.items()})
    try:
        yield
    finally:
        log.info("process stopped")


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Redact values whose name or form shows a secret, at any depth."""
    return {name: redacted(value, name=name) for name, value in event.items()}


def redacted(value: Any, *, name: str = "") -> Any:  # noqa: ANN401 - a log line holds anything
    """The value without what looks like a secret by its form, or by the name of a field, at any depth."""
    if _SECRET_NAMES.search(name) and isinstance(value, str | bytes):
        return REDACTED
    if isinstance(value, str):
        return _SECRET_TEXTS.sub(lambda found: (found["scheme"] or found["user"] or "") + REDACTED, value)
    if isinstance(value, Mapping):
        return {key: redacted(inner, name=str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner, name=name) for inner in value]
    return value


def _naming(process: str) -> Processor:
    def name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.pop("color_message", None)  # uvicorn's second copy of its text
        if process:
            event.setdefault("process", process)
        return event

    return name


def _renderer(form: Literal["console", "json"]) -> Processor:
    if form == "json":
        return structlog.processors.JSONRenderer()
    # Plain tracebacks: the pretty ones print local variables, and those may hold secrets.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
    )


def _take_over_root(level: str, *, foreign: list[Processor], renderer: Processor) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *foreign],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in _EXPECTED:
        logging.getLogger(name).setLevel(max(logging.ERROR, root.level))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
