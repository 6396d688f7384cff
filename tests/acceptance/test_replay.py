"""Recorded chat traffic through the whole product: file, HTTP, Redis, Postgres, and back by HTTP.

The expected counts were computed from the files alone, by a program that is no part of this project: a new session where a
user's last message is 15 minutes ago or more.
"""

import asyncio
import gzip
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import msgspec
import pytest

from app.domain.comparison import Line, Rerun, differences, totals
from app.domain.instants import ms_of
from app.domain.policy.parse import policy_from
from app.ingest.wire import entry_from
from app.queries.analytics import VENDORS
from app.replay import Poster, Tally, open_source, replay
from app.settings import environment_with
from tests.acceptance.system import Json, Running, asked, pages, system, until

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "irc"
DEV = DATA / "irc-dev.ndjson.gz"
TRAIN = DATA / "irc-train.ndjson.gz"
METRICS_GUIDE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
BOT = "irc"
AT_ONCE = 8

needs_data = pytest.mark.skipif(not DEV.exists(), reason=f"the recorded traffic is not there: {DATA}")


async def _sandbox(api: httpx.AsyncClient) -> None:
    policy = {"inactivity_minutes": 15, "inactivity_clock": "any"}
    bot = {"id": BOT, "name": "IRC", "sandbox": True, "clock_mode": "sent_at", "policy": policy}
    await asked(api, "POST", "/v1/bots", bot)


async def _replay(api: httpx.AsyncClient, path: Path) -> Tally:
    with open_source(str(path)) as source:
        return await replay(source.lines(), poster=Poster(api, bot=BOT))


async def _messages(api: httpx.AsyncClient, sessions: list[Json]) -> dict[str, list[str]]:
    """The message ids of each session, in the order of their sequence."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def of(session: Json) -> tuple[str, list[str]]:
        async with gate:
            path = f"/v1/sessions/{session['id']}/messages"
            found = [message async for message in pages(api, path, "messages", limit="200")]
        assert [message["sequence"] for message in found] == list(range(1, session["entries"] + 1))
        return session["id"], [message["message_id"] for message in found]

    return dict(await asyncio.gather(*(of(session) for session in sessions)))


async def _archived(api: httpx.AsyncClient, count: int) -> list[Json]:
    """All closed sessions, once there are that many and none is open."""
    sessions: list[Json] = []

    async def complete() -> bool:
        live = await asked(api, "GET", f"/v1/bots/{BOT}/live")
        sessions[:] = [session async for session in pages(api, "/v1/sessions", "sessions", bot=BOT, limit="200")]
        return not live["sessions"] and len(sessions) >= count

    await until(complete, within_s=100)
    return sessions


async def _advance_past_the_last_deadline(api: httpx.AsyncClient) -> None:
    await asked(api, "POST", f"/v1/bots/{BOT}/clock/advance", {"seconds": 16 * 60})


@needs_data
async def test_recorded_traffic_becomes_exactly_the_sessions_it_holds(redis_url: str, database_url: str) -> None:
    """11,612 messages become 1,761 sessions: none lost, none twice, each message in one session and in its order."""
    with system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api:
            await _sandbox(api)

            tally = await _replay(api, DEV)
            await _advance_past_the_last_deadline(api)
            sessions = await _archived(api, 1_761)
            kept = await _messages(api, sessions)

    sent = [msgspec.json.decode(line)["message_id"] for line in gzip.decompress(DEV.read_bytes()).splitlines()]
    assert (tally.entries, tally.opened, tally.refused, tally.duplicates) == (11_612, 1_761, 0, 0)
    assert len(sessions) == len(kept) == 1_761
    assert {session["reason"] for session in sessions} == {"inactivity"}
    assert Counter(message for messages in kept.values() for message in messages) == Counter(sent)
    assert len(sent) == 11_612


@needs_data
def test_the_definitions_differ_on_recorded_traffic_as_the_guide_says() -> None:
    """The table in docs/metrics.md: one history, counted by `decide` under the bot's own policy and under each preset."""
    said = [entry_from(line) for line in gzip.decompress(DEV.read_bytes()).splitlines()]
    history = sorted((ms_of(entry.sent_at), number) for number, entry in enumerate(said) if entry.sent_at)
    policies = {"own": policy_from({}), **{vendor: policy_from({"preset": vendor}) for vendor in VENDORS}}
    reruns = {name: Rerun(BOT, policy) for name, policy in policies.items()}
    for at_ms, number in history:
        for rerun in reruns.values():
            rerun.feed(Line(number, at_ms, said[number]))

    assert [_row(name, rerun, reruns["own"]) for name, rerun in reruns.items()] == [
        line for line in METRICS_GUIDE.read_text().splitlines() if line.startswith(tuple(f"| `{name}` | " for name in reruns))
    ]


def _row(name: str, theirs: Rerun, own: Rerun) -> str:
    counted = totals(theirs.sessions())
    found = "" if theirs is own else "none"
    for each in differences(theirs, own):
        many = f"{each.more} more" if each.more else f"{each.fewer} fewer"
        found = f"{many}, `{each.reason}`: {', '.join(f'`{setting}`' for setting in each.settings)}"
    numbers = (counted.sessions, counted.interactive, counted.contained.part, counted.billing_sessions)
    return f"| `{name}` | {' | '.join(map(str, numbers))} | {found} |".replace("|  |", "| |")


@needs_data
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_years_of_traffic_become_exactly_the_sessions_they_hold(redis_url: str, database_url: str) -> None:
    """196,127 messages become 27,206 sessions."""
    with system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api:
            await _sandbox(api)

            tally = await _replay(api, TRAIN)
            await _advance_past_the_last_deadline(api)
            sessions = await _archived(api, 27_206)

    assert (tally.entries, tally.opened, tally.refused, tally.duplicates) == (196_127, 27_206, 0, 0)
    assert len({session["id"] for session in sessions}) == len(sessions) == 27_206
    assert sum(session["entries"] for session in sessions) == 196_127


async def test_what_was_replayed_before_is_recognised(redis_url: str, database_url: str, tmp_path: Path) -> None:
    """The same file again, entries without ids of their own: all are duplicates, and no session opens."""
    path = tmp_path / "day.ndjson"
    path.write_text("".join(f'{{"user_id":"user-{number % 50}","role":"user"}}\n' for number in range(1_200)))
    with system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/bots", {"id": BOT, "name": "Any"})

            first, second = await _replay(api, path), await _replay(api, path)

    assert (first.entries, first.opened, first.duplicates) == (1_200, 50, 0)
    assert (second.entries, second.opened, second.duplicates) == (1_200, 0, 1_200)


def _adjourn_replay(running: Running, source: str, text: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The command as a script would run it: no terminal, the key in the environment."""
    command = [sys.executable, "-m", "app.cli", "replay", source, "--bot", BOT, "--url", running.url]
    environment = environment_with(adjourn_key=running.key)
    done = subprocess.run(command, env=environment, input=text, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_the_command_reports_and_its_exit_code_says_whether_all_was_taken(
    redis_url: str, database_url: str, tmp_path: Path
) -> None:
    """0 where every entry was taken; 1 where one was refused, named by its line; 1 and one line where it cannot begin."""
    good = [f'{{"user_id":"u{number}","role":"user"}}'.encode() for number in range(10)]
    packed = tmp_path / "good.ndjson.gz"
    packed.write_bytes(gzip.compress(b"\n".join(good)))
    with system(redis_url=redis_url, database_url=database_url) as running:
        async with running.client() as api:
            await asked(api, "POST", "/v1/bots", {"id": BOT, "name": "Any"})

        taken = _adjourn_replay(running, str(packed))
        refused = _adjourn_replay(running, "-", b"\n".join([*good[:2], b'{"user_id":"x","role":"king"}', *good[2:]]))
        missing = _adjourn_replay(running, str(tmp_path / "none"))

    assert taken.returncode == 0, taken.stderr
    assert _counts(taken.stdout) == {"entries": 10, "sessions opened": 10, "duplicates": 0, "refused": 0}
    assert refused.returncode == 1
    assert _counts(refused.stdout) == {"entries": 11, "sessions opened": 0, "duplicates": 0, "refused": 1}
    assert '\nline 3: the entry cannot be read (role: "king" given)\n' in refused.stdout
    assert missing.returncode == 1
    assert missing.stderr.startswith("adjourn: cannot read ")
    assert missing.stderr.count("\n") == 1
    assert "\x1b" not in taken.stdout + refused.stdout


def _counts(output: str) -> dict[str, int]:
    """The whole numbers of a report, by name."""
    rows = (
        line.rsplit(maxsplit=1) for line in output.splitlines() if line and not line.startswith(("line", "seconds", "entries/s"))
    )
    return {name: int(number) for name, number in rows}
