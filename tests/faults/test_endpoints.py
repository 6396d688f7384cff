"""A hundred endpoints, some of them faulty: the others get their webhooks in time, and the worker's memory stays bounded."""

import asyncio
import socket

import pytest

from tests.faults.conftest import Tabulate, full
from tests.faults.draining import allowed_s, until
from tests.faults.installation import SILENCE_MS, Installation
from tests.faults.oracle import judge
from tests.faults.processes import Process
from tests.faults.table import Row
from tests.faults.talk import Log, Talker
from tests.receiver import drip, flood, gzip_bomb, redirect, silence

ENDPOINTS = 100
IN_TIME_S = 5.0
PACE_S = 0.6
ELSEWHERE = "/elsewhere"
MEGABYTE = 1 << 20
GREW = 50 * MEGABYTE

_FIRST_ATTEMPTS = """
    SELECT extract(epoch FROM a.started_at - d.created_at)::float8 AS late_s
    FROM deliveries d JOIN attempts a ON a.delivery_id = d.id AND a.attempt = 1
    WHERE d.endpoint_id = ANY(CAST(:endpoints AS uuid[])) ORDER BY 1
"""
_STATUSES = """
    SELECT status, count(*) AS n FROM deliveries WHERE endpoint_id = ANY(CAST(:endpoints AS uuid[])) GROUP BY status
"""


@pytest.mark.parametrize("sessions", (pytest.param(16, id="short"), full(80, timeout_s=200)))
async def test_bad_endpoints_among_good_ones(stage: Installation, tabulate: Tabulate, sessions: int) -> None:
    """One dead, one silent, one dripping, one sending 1 GB, one a gzip bomb, one redirecting: p99 of the others is within 5 s."""
    bot, log = await stage.make_bot("closing"), Log()
    bad = [await stage.make_endpoint(bot, url) for url in _bad_urls(stage)]
    good = [await stage.make_endpoint(bot, stage.receiver.url(f"/good-{number}")) for number in range(ENDPOINTS - len(bad))]
    await stage.start("api")
    worker = await stage.start("worker", delivery_timeout_s=15)
    grown = _Growth(worker)
    async with grown:
        await _let_close(stage, bot, log, sessions)
        await until(lambda: _all_delivered(stage, good), within_s=60, what="all deliveries of good endpoints")
    verdict = await judge(stage, log)
    late_s = [row.late_s for row in await stage.rows(_FIRST_ATTEMPTS, endpoints=good)]
    p99_s = late_s[int(len(late_s) * 0.99)]

    elsewhere = len(stage.receiver.at(ELSEWHERE))
    besides = f"p99 of the others' {p99_s:.1f} s, the latest {late_s[-1]:.1f} s; worker {grown.bytes / MEGABYTE:+.0f} MB"
    tabulate(Row.of(f"{len(bad)} bad ones among {ENDPOINTS} endpoints", sessions, verdict, recovery_s=p99_s, besides=besides))
    assert len(late_s) == sessions * len(good)
    assert worker.status is None
    assert stage.traces() == []
    assert elsewhere == 0
    verdict.check()
    assert p99_s < allowed_s(IN_TIME_S)
    assert grown.bytes < GREW


def _bad_urls(stage: Installation) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    receiver = stage.receiver
    return [
        dead,
        receiver.behave("/silent", silence()),
        receiver.behave("/dripping", drip()),
        receiver.behave("/flood", flood()),
        receiver.behave("/bomb", gzip_bomb()),
        receiver.behave("/redirect", redirect(receiver.url(ELSEWHERE))),
    ]


async def _let_close(stage: Installation, bot: str, log: Log, sessions: int) -> None:
    """Open one session after the other and let it fall due; each is a delivery for every endpoint."""
    async with stage.caller() as caller:
        talker = Talker(caller, bot, log)
        for number in range(sessions):
            said = await talker.say(f"u{number}", 1)
            await stage.move_clock(bot, to_ms=said.received_at_ms + SILENCE_MS)
            await asyncio.sleep(PACE_S)


async def _all_delivered(stage: Installation, endpoints: list[str]) -> bool:
    statuses = {row.status: row.n for row in await stage.rows(_STATUSES, endpoints=endpoints)}
    return set(statuses) == {"delivered"}


class _Growth:
    """By how much a process grew at most while the block ran, looked at all the time."""

    def __init__(self, process: Process) -> None:
        self.bytes = 0
        self._process = process

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._look(self._process.rss()))

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _look(self, before: int) -> None:
        while True:
            self.bytes = max(self.bytes, self._process.rss() - before)
            await asyncio.sleep(0.05)
