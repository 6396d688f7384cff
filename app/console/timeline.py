"""The picture of one session on a line of time, and the question what its conversation had been under another silence. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct, structs

from app.console.api_calls import Json
from app.console.pages import parse
from app.domain.comparison import Line, Rerun
from app.domain.entry import Entry
from app.domain.instants import ms_of
from app.domain.policy.model import Policy
from app.domain.records import Session

LEFT, RIGHT = 20, 980
"""The ends of the line of time in the picture, which is 1,000 units wide."""

_FIELDS = frozenset(Entry.__struct_fields__) - {"sent_at"}


class FigureMark(Struct, frozen=True):
    """One thing in the picture."""

    x: float
    kind: str  # a role, or `boundary`, `deadline`, `reminder`
    title: str


class Figure(Struct, frozen=True):
    """The picture: where things are, in its own units."""

    start: str
    end: str
    marks: list[FigureMark]
    gap: tuple[float, float] | None  # the silence from the entry that set the deadline to the deadline


def figure(session: Json, messages: Sequence[Json], explanation: Json) -> Figure:
    """The session from its opening to its close or, while it is open, to its deadline."""
    deadline, closed_at = explanation["deadline"], session["closed_at"]
    received = [message["received_at"] for message in messages]
    # A deadline that a close came before may be days later: it is left out then.
    end = max([*received, closed_at or deadline["at"]])
    start_ms, end_ms = ms_of(parse(session["opened_at"])), ms_of(parse(end))

    def x_of(at: str) -> float:
        part = (ms_of(parse(at)) - start_ms) / max(end_ms - start_ms, 1)
        return round(LEFT + (RIGHT - LEFT) * min(max(part, 0), 1), 1)

    marks = [FigureMark(x_of(session["opened_at"]), "boundary", f"opened at {session['opened_at']}")]
    if deadline["at"] <= end:
        marks.append(FigureMark(x_of(deadline["at"]), "deadline", f"deadline at {deadline['at']}"))
    if session["reminded_at"]:
        marks.append(FigureMark(x_of(session["reminded_at"]), "reminder", f"reminder at {session['reminded_at']}"))
    if closed_at:
        marks.append(FigureMark(x_of(closed_at), "boundary", f"closed at {closed_at}: {session['reason']}"))
    marks += [
        FigureMark(x_of(each["received_at"]), each["role"], f"{each['type']} by {each['role']} at {each['received_at']}")
        for each in messages
    ]
    mover = next((each["received_at"] for each in messages if each["message_id"] == deadline["message_id"]), None)
    gap = (x_of(mover), x_of(min(deadline["at"], end))) if mover else None
    return Figure(session["opened_at"], end, marks, gap)


def supposed(bot: str, policy: Policy, sessions: Sequence[tuple[Json, Sequence[Json]]], *, minutes: int) -> list[Session]:
    """The sessions that `decide` makes of these sessions' entries if silence closes after other minutes, on each channel."""
    overrides = {name: structs.replace(each, inactivity_minutes=minutes) for name, each in policy.channels.items()}
    rerun = Rerun(bot, structs.replace(policy, inactivity_minutes=minutes, channels=overrides))
    lines = [
        (ms_of(parse(message["received_at"])), message["sequence"], _entry(session, message))
        for session, messages in sessions
        for message in messages
    ]
    for number, (at_ms, _, entry) in enumerate(sorted(lines, key=lambda line: line[:2])):
        rerun.feed(Line(number, at_ms, entry))
    return sorted((one.session for one in rerun.sessions().values()), key=lambda session: session.opened_at_ms)


def _entry(session: Json, message: Json) -> Entry:
    given: dict[str, Any] = {name: value for name, value in message.items() if name in _FIELDS and value is not None}
    given |= {"channel": session["channel"], "conversation_id": session["conversation_id"]}
    return msgspec.convert(given, Entry)
