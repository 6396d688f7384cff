"""`adjourn demo`: the whole product in one command, which judges itself; and a judge that cannot fail is none."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from app.demo.command import compare, show
from app.demo.day import KINDS, make_day
from app.demo.play import JsonDict, Played, ReceivedWebhook, Receiver

DAY = make_day()
README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_demo_plays_its_day_and_agrees_with_it() -> None:
    """Servers, API, worker and webhooks come up, everything scripted happens, and nothing is left behind."""
    done = subprocess.run([sys.executable, "-m", "app.cli", "demo"], capture_output=True, text=True, timeout=100, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything agrees with the script." in done.stdout
    assert done.stderr == ""
    assert _steady(done.stdout) in _steady(README.read_text()), "the README shows another output"


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
