"""The time from a session's deadline to its webhook at a receiver on loopback, beside many sessions that stay open.

The sessions are opened as if by entries of a while ago, so that their deadlines pass during the measurement, a few each
millisecond; one worker runs with all its jobs. The receiver shares its process.
"""

import asyncio
from time import time
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import text

from app.config.publish import publish
from app.domain.entry import Entry
from app.domain.instants import MINUTE_MS
from app.domain.policy.model import Policy
from app.domain.records import Receive
from app.domain.strand import Strand
from app.ids import new_id, new_webhook_secret
from app.resources import Resources
from app.worker import Worker
from bench.installation import BOT

DUE = 1_000
"""Sessions whose deadlines are watched."""
LEAD_MS = 4_000
"""From the start of the worker to the first deadline."""
SPREAD_MS = 5_000
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_SILENCE_MS = Policy().inactivity_minutes * MINUTE_MS
_BOT = text("INSERT INTO bots (id, name) VALUES (:bot, :bot) ON CONFLICT DO NOTHING")
_ENDPOINT = text(
    "INSERT INTO endpoints (id, bot_id, url, events, secret) VALUES (:id, :bot, :url, ARRAY['session.closed'], :secret)"
)


Arrivals = asyncio.Queue[tuple[str, float]]
"""Ids of sessions and the instants at which their webhooks arrived, in ms since the epoch."""


class Lags(Struct, frozen=True):
    """Milliseconds from deadlines to the receiver's socket, in order, beside `open` sessions with later deadlines."""

    open: int
    to_receiver: list[float]


async def measure(resources: Resources, *, beside: tuple[int, ...]) -> list[Lags]:
    """One measurement for each number of sessions that stay open; they add up."""
    arrivals: Arrivals = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: _receive(reader, writer, arrivals), "127.0.0.1", 0)
    await _subscribe(resources, url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    worker = Worker(resources)
    worker.start()
    found, open_before = [], 0
    for count in beside:
        await _open(resources, [f"stay-{number}" for number in range(open_before, count)], at_ms=_now_ms())
        open_before = count
        found.append(Lags(count, await _due(resources, arrivals, run=count)))
    await worker.stop()
    server.close()
    return found


def show(found: list[Lags]) -> None:
    print(f"\nLag: {DUE:,} deadlines within {SPREAD_MS / 1_000:.0f} s, from each to its webhook on loopback, one worker")
    for lags in found:
        p50, p99 = _percentile(lags.to_receiver, 0.5), _percentile(lags.to_receiver, 0.99)
        print(f"  beside {lags.open:>7,} open sessions: p50 {p50:>5.0f} ms, p99 {p99:>5.0f} ms")


async def _due(resources: Resources, arrivals: Arrivals, *, run: int) -> list[float]:
    first_ms = _now_ms() + LEAD_MS
    deadlines: dict[str, float] = {}
    for number in range(DUE):
        at_ms = first_ms + number * SPREAD_MS // DUE
        (session,) = await _open(resources, [f"due-{run}-{number}"], at_ms=at_ms - _SILENCE_MS)
        deadlines[session] = at_ms
    lags: dict[str, float] = {}
    async with asyncio.timeout(120):
        while len(lags) < DUE:
            session, arrived_ms = await arrivals.get()
            if session in deadlines:
                lags.setdefault(session, arrived_ms - deadlines[session])
    return sorted(lags.values())


async def _open(resources: Resources, users: list[str], *, at_ms: int) -> list[str]:
    """Open a session of each user by a message at that instant; returns their ids."""
    opened = []
    for first in range(0, len(users), 2_000):
        submitted = [
            resources.ledger.submit(
                Strand(BOT, f"web:{user}"), Receive(Entry(user_id=user, role="user", text="hello"), user), at_ms=at_ms
            )
            for user in users[first : first + 2_000]
        ]
        answers = [outcome.answer for outcome in await asyncio.gather(*submitted)]
        opened += [answer.session_id for answer in answers if answer is not None and answer.session_id is not None]
    return opened


async def _subscribe(resources: Resources, *, url: str) -> None:
    """Subscribe one endpoint, and none of those that another part has left."""
    async with resources.engine.begin() as conn:
        await conn.execute(text("DELETE FROM endpoints"))
        await conn.execute(_BOT, {"bot": BOT})
        await conn.execute(_ENDPOINT, {"id": new_id(_now_ms()), "bot": BOT, "url": url, "secret": new_webhook_secret()})
    await publish(resources.engine, resources.redis)
    await resources.config.load()


async def _receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, arrivals: Arrivals) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            at_ms = time() * 1_000
            start = head.index(b"content-length:") + 15
            event: dict[str, Any] = msgspec.json.decode(await reader.readexactly(int(head[start : head.index(b"\r\n", start)])))
            arrivals.put_nowait((event["data"]["session"]["id"], at_ms))
            writer.write(_OK)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def _now_ms() -> int:
    return int(time() * 1_000)


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
