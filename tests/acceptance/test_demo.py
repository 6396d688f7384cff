"""`adjourn demo`: the whole product in one command, which judges itself; and a judge that cannot fail is none."""

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from io import StringIO
from itertools import takewhile
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from app.demo.command import compare, show
from app.demo.day import KINDS, make_day
from app.demo.play import JsonDict, Played, ReceivedWebhook, Receiver
from app.demo.stay import BOTS, REFUSED
from tests.acceptance.serving import until

DAY = make_day()
README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_demo_plays_its_day_agrees_with_it_and_stays() -> None:
    """Servers, API, worker and webhooks come up, everything scripted happens; then traffic goes on until Ctrl-C."""
    command = [sys.executable, "-m", "app.cli", "demo", "--stay"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        played = "".join(takewhile(lambda line: not line.startswith("Users of the bots"), demo.stdout))
        _, address, key, _ = (demo.stdout.readline().strip() for _ in range(4))
        try:
            with httpx.Client(base_url=address.removesuffix("/console/"), headers={"authorization": f"Bearer {key}"}) as api:
                until(lambda: api.get("/v1/live").json().get("open", 0) > 0, within_s=30)
                until(lambda: {bot["id"] for bot in api.get("/v1/bots").json()["bots"]} >= {"demo", *BOTS})
                until(lambda: _bots_in_trouble(api) == {REFUSED}, within_s=30)
        finally:
            demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)

    assert demo.returncode == 0, played + errors
    assert "Everything agrees with the script." in played
    assert errors == ""
    assert _steady(played) in _steady(README.read_text()), "the README shows another output"


def _bots_in_trouble(api: httpx.Client) -> set[str]:
    """The bots of deliveries that were tried and are not delivered."""
    deliveries = api.get("/v1/deliveries", params={"limit": 200}).json()["deliveries"]
    return {each["bot"] for each in deliveries if each["attempts"] and each["status"] != "delivered"}


def _steady(output: str) -> str:
    """The output without ports and durations, which differ at each run."""
    lines = [line.rstrip() for line in output.strip().splitlines()]
    return re.sub(r"\d+\.\d s", "n s", re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:n", "\n".join(lines)))


def test_the_day_is_the_same_each_time_and_holds_every_kind_of_visit() -> None:
    """The README shows the output of every run."""
    again = make_day()

    assert again == DAY
    assert set(DAY.expected.reasons) == {reason for kind in KINDS for reason in kind.ends}
    assert set(DAY.expected.closure_messages) == {"en", "es"}
    assert [item.at_ms for item in DAY.items] == sorted(item.at_ms for item in DAY.items)


def _session(reason: str, number: int, *, interactive: bool) -> JsonDict:
    return {"id": f"s{number}", "reason": reason, "interactive": interactive, "entries": 0, "late_entries": 0}


def _as_scripted() -> tuple[Played, Receiver]:
    """The result of a product without faults."""
    expected = DAY.expected
    reasons = sorted(expected.reasons.elements())
    sessions = [_session(reason, number, interactive=number < expected.interactive) for number, reason in enumerate(reasons)]
    sessions[0] |= {"entries": expected.entries - expected.late, "late_entries": expected.late}
    receiver = Receiver()
    for number, language in enumerate(expected.closure_messages.elements()):
        receiver.received.append(_webhook("session.closure_message", {"id": f"f{number}"}, language=language, text="Bye"))
    receiver.received += [_webhook("session.closed", session) for session in sessions]
    return Played(expected.entries, 0, len(sessions), sessions, []), receiver


def _webhook(kind: str, session: JsonDict, **data: str) -> ReceivedWebhook:
    return ReceivedWebhook(f"{kind}/{session['id']}", kind, {"session": session, **data})


def test_what_is_as_scripted_agrees() -> None:
    """The comparison accepts a correct result."""
    played, receiver = _as_scripted()

    assert compare(DAY, played, receiver).agrees


@pytest.mark.parametrize(
    "spoil",
    (
        lambda played, _: played.sessions.pop(),
        lambda played, _: played.sessions[3].update(id=played.sessions[4]["id"]),
        lambda played, _: played.sessions[0].update(entries=1),
        lambda played, _: played.sessions[0].update(late_entries=1),
        lambda played, _: played.sessions[0].update(reason="ended"),
        lambda _, receiver: receiver.received.pop(),
        lambda _, receiver: receiver.received.pop(0),
        lambda _, receiver: setattr(receiver, "forged", 1),
        lambda _, receiver: receiver.received.insert(0, _webhook("session.closed", {"id": "f0", "reason": "api"})),
    ),
    ids=(
        "session lost", "session twice", "entry lost", "late entry lost", "wrong reason", "end not delivered",
        "no closure message", "forged", "closure message too late",
    ),
)  # fmt: skip
def test_every_difference_from_the_script_is_found(spoil: Callable[[Played, Receiver], object]) -> None:
    """One session, entry or webhook too few, one too many, one that says something else."""
    played, receiver = _as_scripted()
    spoil(played, receiver)

    comparison = compare(DAY, played, receiver)
    shown = StringIO()
    show(Console(file=shown, width=120), comparison, played)

    assert not comparison.agrees
    assert "Sessions by close reason" in shown.getvalue()


def test_a_webhook_delivered_twice_counts_once() -> None:
    """Webhooks are delivered at least once, so a repeat is not an error."""
    played, receiver = _as_scripted()
    receiver.received += receiver.received[-5:]

    assert compare(DAY, played, receiver).agrees
    assert Counter(item.type for item in receiver.received)["session.closed"] == DAY.expected.reasons.total() + 5
