"""Every request is measured and, by the setting, logged: one line with its route, and with nothing that a caller asked for."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog
from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from structlog.testing import LogCapture

from app.api import access
from app.api.access import AccessLog, Watched, is_watched
from app.config.records import SIGNED_IN
from app.log import configure_logging, logged_life
from app.metrics import REQUEST_BOUNDS_S, BufferedHistogram, flush
from app.settings import Settings
from app.supervisor.connection import Connection
from tests.api.conftest import Client
from tests.api.test_direct import answers, post, served

ENTRIES = "/v1/bots/{bot}/messages"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"access_log": 1.0})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The access lines as they are written."""
    capture = LogCapture()
    monkeypatch.setattr(access, "_log", structlog.wrap_logger(None, processors=[capture]))
    return capture.entries  # type: ignore[return-value]  # dictionaries by another name


def counted(route: str, method: str, status: int) -> float:
    flush()
    labels = {"route": route, "method": method, "status": str(status)}
    return REGISTRY.get_sample_value("adjourn_request_seconds_count", labels) or 0


async def test_every_kind_of_request_has_one_line_and_is_counted(
    app: FastAPI, admin: Client, lines: list[dict[str, Any]]
) -> None:
    """Refused before its route was looked for, unknown, ingest by both ways, a page: the route is a template each time."""
    await admin.ok("POST", "/v1/bots", {"id": "shop"})
    key = admin.headers["authorization"].removeprefix("Bearer ")
    entry = {"user_id": "ann", "role": "user", "text": "secret words"}
    expected = [
        ("/v1/bots/{bot}/live", "GET", 200, "shop"),
        ("/v1/bots/{bot}/live", "GET", 401, None),
        ("unknown", "GET", 404, None),
        ("/docs/assets", "GET", 404, None),
        (ENTRIES, "POST", 200, "shop"),
        (ENTRIES, "POST", 422, "shop"),
        (f"{ENTRIES}/batch", "POST", 200, "shop"),
        ("/console/bots", "GET", 303, None),
        (ENTRIES, "POST", 200, "shop"),
        ("/healthz", "GET", 200, None),
        (ENTRIES, "POST", 422, "shop"),
        ("/healthz", "GET", 200, None),
    ]
    before = {each[:3]: counted(*each[:3]) for each in expected}
    lines.clear()

    await admin.get("/v1/bots/shop/live?limit=7", headers={"x-request-id": "mine-1"})
    await admin.get("/v1/bots/shop/live", headers={"authorization": "Bearer adj_no"})
    await admin.get("/nothing/here")
    await admin.get("/docs/assets/nothing")
    await admin.post("/v1/bots/shop/messages", json=entry)
    await admin.post("/v1/bots/shop/messages", json={})
    await admin.post("/v1/bots/shop/messages/batch", json=[entry])
    await admin.get("/console/bots")
    async with served(app, Connection) as port:
        await answers(port, post(), bot="shop", key=key)
        await answers(port, post(b"{}"), bot="shop", key=key)

    assert [(line["route"], line["method"], line["status"], line.get("bot")) for line in lines] == expected
    assert {line.get("key") for line in lines if line["status"] == 200 and "/v1/" in line["route"]} == {
        "test ('admin', 'read', 'ingest')"
    }
    assert lines[0]["request_id"] == "mine-1"
    assert all(line["request_id"] and line["ms"] >= 0 for line in lines)
    assert not any(word in str(lines) for word in ("limit", "secret", "adj_", "ann"))
    for each, known in before.items():
        assert counted(*each) - known == [line[:3] for line in expected].count(each)


@pytest.mark.parametrize(("share", "logged"), ((0.0, 0), (0.01, 10), (0.25, 250), (1.0, 1_000)))
async def test_a_share_of_requests_is_logged_and_every_failure(lines: list[dict[str, Any]], share: float, logged: int) -> None:
    """Of each kind of status the same share, so that the many 200 hide no 404; without the setting there is no line at all."""
    log = AccessLog(share)
    for status in [200, 200, 200, 404] * 1_000 + [500] * 1_000:
        log.write(route="/x", method="GET", status=status, began_ms=0, key=None, bot=None, request_id="1")

    by_status = [sum(line["status"] == status for line in lines) for status in (200, 404, 500)]
    assert by_status == [pytest.approx(3 * logged, abs=1), pytest.approx(logged, abs=1), 1_000 if share else 0]


async def test_a_request_without_an_answer_has_a_status(lines: list[dict[str, Any]]) -> None:
    """499 where the client left, 500 where it failed; a long name of a bot is cut."""

    async def send(_message: object) -> None:
        """Take what is sent."""

    scope = {"type": "http", "method": "GET", "path": "/x", access.ROUTE: "/x", access.BOT: "b" * 100}
    with Watched(AccessLog(1.0), scope, send):
        pass
    with suppress(ValueError), Watched(AccessLog(1.0), scope, send):
        raise ValueError

    assert [(line["status"], line["bot"]) for line in lines] == [(499, "b" * 64), (500, "b" * 64)]


def test_calls_of_the_console_within_the_process_are_no_requests() -> None:
    """Nor are the start and stop of the app."""
    scopes: tuple[dict[str, Any], ...] = ({"type": "http"}, {"type": "http", SIGNED_IN: b"x"}, {"type": "lifespan"})

    assert [is_watched(scope) for scope in scopes] == [True, False, False]


async def test_a_buffered_histogram_has_what_a_plain_one_has() -> None:
    """It adds to the library's buckets itself: values on and between their bounds, and above the last."""
    values = (0.0, 0.001, 0.0011, 0.3, 10, 11, 0.3)
    texts = []
    for buffered in (True, False):
        registry = CollectorRegistry()
        histogram = Histogram("x", "x", ["a", "b"], buckets=REQUEST_BOUNDS_S, registry=registry)
        waiting = BufferedHistogram(histogram, REQUEST_BOUNDS_S)
        for value in values:
            if buffered:
                waiting.add(("1", "2"), value)
            else:
                histogram.labels("1", "2").observe(value)
        waiting.flush()
        texts.append([sample[:3] for metric in registry.collect() for sample in metric.samples if "created" not in sample.name])

    assert texts[0] == texts[1]
    assert len(texts[0]) == len(REQUEST_BOUNDS_S) + 3


@pytest.fixture
def logged_to(capsys: pytest.CaptureFixture[str]) -> Iterator[pytest.CaptureFixture[str]]:
    yield capsys
    structlog.reset_defaults()


def test_a_process_logs_its_start_and_its_stop_without_secrets(logged_to: pytest.CaptureFixture[str]) -> None:
    """The version and each setting that differs from its default; that a secret is set, and never its value."""
    chosen = Settings(
        redis_url="redis://u:hidden1@h/0", database_url="postgresql://u:hidden2@h/d", adjourn_admin_key="adj_" + "h" * 43,
        tick_ms=99, log_format="json",
    )  # fmt: skip
    configure_logging(chosen)

    with logged_life(chosen):
        pass

    start, stop = logged_to.readouterr().err.splitlines()
    assert '"event": "process started"' in start
    assert '"tick_ms": "99"' in start
    assert '"version": "0.1.0"' in start
    assert '"redis_url": "set"' in start
    assert "sweep_batch" not in start
    assert not any(secret in start for secret in ("hidden1", "hidden2", "hhh"))
    assert '"event": "process stopped"' in stop


@pytest.mark.parametrize(("given", "share"), (("true", 1), ("False", 0), ("0.25", 0.25), ("1", 1)))
def test_the_share_may_be_given_as_yes_or_no(monkeypatch: pytest.MonkeyPatch, given: str, share: float) -> None:
    """ACCESS_LOG was true or false before it was a share."""
    monkeypatch.setenv("ACCESS_LOG", given)

    assert Settings().access_log == share
